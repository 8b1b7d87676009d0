"""Where the next attempt gets its URL and its headers from."""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional, Tuple, Union

from .errors import CallableFailed, ConnectError, detached
from .headers import normalize_headers
from .transport import Cancelled, Waiter

if TYPE_CHECKING:
    from .opening import OpenOptions


@dataclass
class Source:
    """What the user gave for the opening; held by the handle, and by an attempt while it runs.

    Never changed.
    """

    __slots__ = ("headers", "options", "url")

    url: Union[str, Callable[[], str]]
    headers: Any  # what `normalize_headers` takes, or a callable that returns it
    options: OpenOptions


def hold_weakly(value: Any, owner: Optional[object]) -> Any:
    """Return a bound method of `owner` as a function that does not keep it alive."""
    if owner is None or getattr(value, "__self__", None) is not owner:
        return value
    reference = weakref.WeakMethod(value)

    def call() -> Any:
        method = reference()
        if method is None:
            raise ReferenceError("the owner of the callable is gone")
        return method()

    return call


def prepare(source: Source, waiter: Waiter) -> Tuple[str, OpenOptions]:
    """Return URL and options of one attempt, calling the user's callables.

    They run where they can be abandoned. Raises CallableFailed for what they raise, ConnectError
    for what they return.
    """
    url = _evaluate("url", source.url, waiter)
    if not isinstance(url, str):
        raise ConnectError(f"url is a str, not {type(url).__name__}")
    headers = source.headers
    if callable(headers):
        try:
            headers = normalize_headers(_evaluate("headers", headers, waiter))
        except (TypeError, ValueError) as error:
            raise ConnectError(f"headers: {error}") from detached(error)
        return url, dataclasses.replace(source.options, headers=headers)
    return url, source.options


def _evaluate(name: str, value: Any, waiter: Waiter) -> Any:
    if not callable(value):
        return value
    try:
        return waiter.call(value)
    except (Cancelled, ConnectError):
        raise
    except BaseException as error:
        # Not its text, which may hold what is secret and ends up in logs.
        raise CallableFailed(f"{name}() raised {type(error).__name__}") from detached(error)
