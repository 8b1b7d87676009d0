"""What the tests of proxies share.

Above all a small real proxy: HTTP CONNECT (also over TLS), SOCKS4, SOCKS4a, SOCKS5, on a thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import ssl
import threading
import traceback
from typing import Any, Dict, List, Optional, Tuple

from tests.support import SOON

USER, PASSWORD = "harriet", "0pen:S3same@"
#: As it stands in a URL.
LOGIN = "harriet:0pen:S3same%40@"
_SECRETS = (
    USER,
    PASSWORD,
    "S3same",
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
)

Address = Tuple[str, int]
Streams = Tuple[asyncio.StreamReader, asyncio.StreamWriter]


def whole(error: BaseException) -> str:
    """All that can be read of an error, its causes and contexts."""
    texts: List[str] = []
    pending: List[Optional[BaseException]] = [error]
    while pending:
        one = pending.pop()
        if one is not None:
            assert one.__traceback__ is None or one is error
            texts += [repr(one), repr(one.args), repr(vars(one))]
            texts += traceback.format_exception_only(type(one), one)
            pending += [one.__cause__, one.__context__]
    return "".join(texts)


def assert_no_secret(error: BaseException) -> None:
    text = whole(error)
    for secret in _SECRETS:
        assert secret not in text


class Refused(Exception):
    """The proxy does not do it; the answer that says so."""


class ProxyServer:
    """Relays to wherever it is asked to. It notes what it was asked.

    `login` is the user and the password it wants; `names` are the names it can resolve, to
    addresses. With `context` it speaks TLS.
    """

    def __init__(
        self,
        scheme: str,
        host: str = "127.0.0.1",
        context: Optional[ssl.SSLContext] = None,
        login: Optional[Tuple[str, str]] = None,
        names: Optional[Dict[str, str]] = None,
    ) -> None:
        self._scheme = scheme
        self._host = host
        self._context = context
        self._login = None if login is None else (login[0].encode(), login[1].encode())
        self._names = names or {}
        self.targets: List[Address] = []  # where it was asked to connect to
        self.heads: List[str] = []  # of the CONNECT requests
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="proxy-server", daemon=True
        )

    def url(self, login: str = "") -> str:
        """Its URL; `login` is ``user:password@``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{login}{host}:{self.port}"

    def __enter__(self) -> ProxyServer:
        self._thread.start()
        assert self._ready.wait(SOON)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(SOON)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, self._host, 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        await _rounds()  # what has come gets its task: asyncio loses it where the server ends first
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _rounds()  # aborted transports close their sockets

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            there = await self._connect(reader, writer)
            if there is not None:
                writers.append(there[1])
                await _relay((reader, writer), there)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # one side has gone, or the server ends
        finally:
            for one in writers:
                one.transport.abort()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Optional[Streams]:
        """Do what is asked for and say so; None where it was refused."""
        kinds = {"socks4": self._ask_socks4, "socks5": self._ask_socks5}
        ask = kinds.get(self._scheme[:6], self._ask_http)
        try:
            address, good, bad = await ask(reader, writer)
            self.targets.append(address)
            try:
                there = await asyncio.open_connection(
                    self._names.get(address[0], address[0]), address[1]
                )
            except OSError:
                raise Refused(bad) from None
        except Refused as refused:
            writer.write(refused.args[0])
            await writer.drain()
            await reader.read()  # the client ends first, so that it gets all of the answer
            return None
        writer.write(good)
        return there

    async def _ask_http(self, reader: asyncio.StreamReader, _: Any) -> Tuple[Address, bytes, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, version = head.split("\r\n")[0].split(" ")
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
        if method != "CONNECT" or version != "HTTP/1.1" or fields["Host"] != target:
            raise Refused(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        if self._login is not None:
            wanted = "Basic " + base64.b64encode(b":".join(self._login)).decode()
            if fields.get("Proxy-Authorization") != wanted:
                raise Refused(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n"
                    b'Proxy-Authenticate: Basic realm="test"\r\n\r\nno'
                )
        host, _, port = target.rpartition(":")
        bad = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        good = b"HTTP/1.1 200 Connection established\r\n\r\n"
        return (host.strip("[]"), int(port)), good, bad

    async def _ask_socks4(
        self, reader: asyncio.StreamReader, _: Any
    ) -> Tuple[Address, bytes, bytes]:
        head = await reader.readexactly(8)
        assert head[:2] == b"\x04\x01", head
        user = (await reader.readuntil(b"\0"))[:-1]
        host = str(ipaddress.IPv4Address(head[4:]))
        if head[4:7] == b"\0\0\0":
            host = (await reader.readuntil(b"\0"))[:-1].decode()
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(host)
                raise AssertionError("an address sent as a name")
        if self._login is not None and user != self._login[0]:
            raise Refused(b"\0\x5d" + bytes(6))
        return (host, int.from_bytes(head[2:4], "big")), b"\0\x5a" + bytes(6), b"\0\x5b" + bytes(6)

    async def _ask_socks5(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Tuple[Address, bytes, bytes]:
        version, count = await reader.readexactly(2)
        assert version == 5
        method = 0 if self._login is None else 2
        if method not in await reader.readexactly(count):
            raise Refused(b"\x05\xff")
        writer.write(bytes([5, method]))
        if self._login is not None:
            assert await reader.readexactly(1) == b"\x01"
            login = await _counted(reader), await _counted(reader)
            if login != self._login:
                raise Refused(b"\x01\x01")
            writer.write(b"\x01\x00")
        head = await reader.readexactly(4)
        assert head[:3] == b"\x05\x01\x00", head
        if head[3] == 3:
            host = (await _counted(reader)).decode()
        else:
            host = str(ipaddress.ip_address(await reader.readexactly(4 if head[3] == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        return (host, port), b"\x05\0\0\x01" + bytes(6), b"\x05\x05\0\x01" + bytes(6)


async def _rounds() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _counted(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly((await reader.readexactly(1))[0])


async def _relay(here: Streams, there: Streams) -> None:
    """Pass bytes on both ways until both sides have ended."""
    await asyncio.gather(_pass_on(here[0], there[1]), _pass_on(there[0], here[1]))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        data = await reader.read(65536)
        if not data:
            break
        writer.write(data)
        await writer.drain()
    writer.close()
