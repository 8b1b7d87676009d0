"""Fixtures for pytest: real servers for tests of delegates, see `wsthread.testing`."""

from __future__ import annotations

from typing import Iterator

import pytest

from .testing import LocalServer


@pytest.fixture
def wsthread_server() -> Iterator[LocalServer]:
    """A server that echoes; change its `reply`, `greeting` or `delay`, stop it, have it refuse."""
    with LocalServer() as server:
        yield server


@pytest.fixture
def wsthread_tls_server() -> Iterator[LocalServer]:
    """The same over TLS: the client takes its `ssl_context`."""
    with LocalServer(tls=True) as server:
        yield server
