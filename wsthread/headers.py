"""Header fields: what a user may give, and the grammar of what a server answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import List, Optional, Sequence, Tuple

Fields = Sequence[Tuple[str, str]]
Parameters = Sequence[Tuple[str, Optional[str]]]
Extensions = Sequence[Tuple[str, Parameters]]

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rf'[ \t]*;[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"((?:[^"\\]|\\.)*)"))?'
)
_NAME = re.compile(rf"[ \t]*({_TOKEN})")
_SEPARATOR = re.compile(r"(?:[ \t]*,)+[ \t]*|[ \t]*\Z")
_LEADING = re.compile(r"[ \t,]*")
#: Control characters, and surrogates, which UTF-8 cannot carry.
_FORBIDDEN = re.compile("[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
#: Fields that the handshake, or the absence of a body, decides.
_OWNED = frozenset(
    {"host", "connection", "upgrade", "content-length", "transfer-encoding", "trailer", "te"}
)


def is_token(text: str) -> bool:
    """Whether a text is a token of RFC 9110 5.6.2."""
    return re.fullmatch(_TOKEN, text) is not None


def normalize_headers(headers: object) -> List[Tuple[str, str]]:
    """Return header fields, given as a mapping or as pairs of str, as a list of pairs.

    TypeError for other types; ValueError for what is no header field, and for the fields that
    belong to the handshake: Host (there is a ``host`` argument), Connection, Upgrade,
    Sec-WebSocket-*, and those that frame a body. The message names the field, not its value.
    Text beyond ASCII is sent as UTF-8.
    """
    if headers is None:
        return []
    if isinstance(headers, Mapping):
        headers = headers.items()
    if isinstance(headers, (str, bytes)) or not isinstance(headers, Iterable):
        raise TypeError(f"headers is a mapping or pairs of str, not {type(headers).__name__}")
    fields = []
    for pair in headers:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError("headers is a mapping or pairs of str: name and value")
        name, value = pair
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("the names and values of headers are str")
        if not is_token(name):
            raise ValueError(f"illegal header name {name!r}")
        if name.lower() in _OWNED or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"the header {name} belongs to the handshake")
        fields.append((name, check_value(name, value)))
    return fields


def check_value(name: str, value: str) -> str:
    """Return a field's value without the white space around it; ValueError if it is none."""
    value = value.strip(" \t")
    if _FORBIDDEN.search(value):
        raise ValueError(f"the value of the header {name} contains a character that is not allowed")
    return value


def find(fields: Fields, name: str) -> List[str]:
    """Return the values of a field, one for each time it is there."""
    return [value for key, value in fields if key.lower() == name]


def parse_extensions(text: str) -> List[Tuple[str, List[Tuple[str, Optional[str]]]]]:
    """Parse Sec-WebSocket-Extensions (RFC 6455 section 9.1); ValueError if it is malformed.

    Quoted values lose their quotes, and are tokens then, as the RFC demands.
    """
    extensions = []
    position = _match(_LEADING, text, 0).end()
    while position < len(text):
        found = _match(_NAME, text, position)
        name = found.group(1)
        parameters: List[Tuple[str, Optional[str]]] = []
        parameter = _PARAMETER.match(text, found.end())
        while parameter is not None:
            found = parameter
            key, value, quoted = parameter.groups()
            if quoted is not None:
                value = re.sub(r"\\(.)", r"\1", quoted)
                if not is_token(value):
                    raise ValueError(f"the value of {key} is no token")
            parameters.append((key, value))
            parameter = _PARAMETER.match(text, found.end())
        extensions.append((name, parameters))
        position = _match(_SEPARATOR, text, found.end()).end()
    return extensions


def _match(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    found = pattern.match(text, position)
    if found is None:
        raise ValueError(f"malformed at character {position + 1}")
    return found
