"""Through a proxy: HTTP CONNECT (RFC 9110 9.3.6), SOCKS4, SOCKS4a, SOCKS5 (RFC 1928 and 1929).

h11 and socksio speak the protocols, over our own transport: every wait is the waiter's.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, Optional, Union
from urllib.parse import unquote_to_bytes

import h11

from .errors import ConnectError, ConnectTimeout, HandshakeError, ProxyError, detached
from .http1 import MAX_EVENT, read_head, receive, write
from .tcp import resolve
from .transport import Cancelled, Transport, Waiter
from .urls import Target, parse_host_port

_PORTS = {
    "http": 80,
    "https": 443,
    **dict.fromkeys(("socks4", "socks4a", "socks5", "socks5h"), 1080),
}
#: Where the proxy is told the name; with the others the name is resolved here.
_REMOTE = ("socks4a", "socks5h")
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#]*)/?")

#: True: what the environment says. None: no proxy.
Setting = Union[bool, "Proxy", None]


@dataclass(frozen=True)
class Proxy:
    """A parsed proxy URL."""

    scheme: str
    host: str
    port: int
    user: Optional[bytes] = field(default=None, repr=False)
    password: bytes = field(default=b"", repr=False)

    @property
    def name(self) -> str:
        """The proxy as errors name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_proxy(url: str) -> Proxy:
    """Parse the URL of a proxy; without a scheme it is http. ValueError quotes nothing secret."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("a proxy's URL is of the form scheme://host:port")
    scheme = (found[1] or "http").lower()
    if scheme not in _PORTS:
        raise ValueError(f"a proxy's scheme is one of {', '.join(_PORTS)}, not {scheme}")
    userinfo, at, host_port = found[2].rpartition("@")
    try:
        host, port = parse_host_port(host_port)
    except ConnectError as error:
        raise ValueError(f"proxy: {error}") from None
    user, _, password = userinfo.partition(":")
    names = unquote_to_bytes(user), unquote_to_bytes(password)
    if scheme.startswith("socks") and max(map(len, names)) > 255:
        raise ValueError("user and password for a SOCKS proxy are at most 255 bytes each")
    if scheme.startswith("socks4") and b"\0" in names[0]:
        raise ValueError("a user for a SOCKS4 proxy contains no zero byte")
    return Proxy(scheme, host, port or _PORTS[scheme], names[0] if at else None, names[1])


def find_proxy(target: Target, setting: Setting, waiter: Waiter) -> Optional[Proxy]:
    """Return the proxy for a target, or None."""
    if setting is not True:
        return setting or None
    # Costs time to import, and only an opening needs it.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    names = ("wss", "https") if target.secure else ("ws", "http")
    url = next((proxies[name] for name in (*names, "socks", "all") if proxies.get(name)), None)
    if url is None:
        return None
    host, authority = target.host, _authority(target)
    # In a thread: on some systems it resolves names. Addresses of IPv6 stand without brackets.
    if waiter.call(lambda: proxy_bypass(host) or proxy_bypass(authority)):
        return None
    try:
        return parse_proxy(url)
    except ValueError as error:
        raise ProxyError(f"the environment's {error}") from error.with_traceback(None)


def open_tunnel(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    """Have the proxy connect the transport to the target.

    Raises ProxyError, ConnectTimeout, Cancelled, and ConnectError for a name that cannot be
    resolved. The caller closes the transport then.
    """
    try:
        if proxy.scheme in ("http", "https"):
            _tunnel_http(transport, proxy, target, waiter)
        else:
            _tunnel_socks(transport, proxy, target, waiter)
    except (ConnectError, ConnectTimeout, Cancelled):
        raise
    except OSError as error:
        text = f"the connection broke: {error.strerror or error}"
        raise ProxyError(f"{proxy.name}: {text}") from detached(error)


def _authority(target: Target) -> str:
    host = target.host.partition("%")[0]
    return f"[{host}]:{target.port}" if ":" in host else f"{host}:{target.port}"


def _fail(proxy: Proxy, text: str, status: Optional[int] = None) -> NoReturn:
    raise ProxyError(f"{proxy.name}: {text}", status)


def _tunnel_http(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    authority = _authority(target)
    headers = [("Host", authority)]
    if proxy.user is not None:
        plain = proxy.user + b":" + proxy.password
        value = "Basic " + base64.b64encode(plain).decode("ascii")
        headers.append(("Proxy-Authorization", value))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_EVENT)
    request = h11.Request(method="CONNECT", target=authority, headers=headers)
    data = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    try:
        write(transport, data, waiter)
        response = read_head(transport, waiter, connection, "it")
    except HandshakeError as error:
        _fail(proxy, str(error))
    status = response.status_code
    if not 200 <= status < 300:
        reason = bytes(response.reason)[:100].decode("latin-1")
        _fail(proxy, f"it answered {status} {reason}".rstrip(), status)
    # The client speaks first, with and without TLS: this cannot be the server's.
    if connection.trailing_data[0]:
        _fail(proxy, "it sent data of its own behind its answer", status)


def _tunnel_socks(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    try:
        import socksio  # noqa: PLC0415
    except ImportError as error:
        text = "SOCKS takes the package socksio: pip install 'wsthread[proxy]'"
        raise ProxyError(f"{proxy.name}: {text}") from detached(error)
    host = target.host
    speak = _socks5 if proxy.scheme.startswith("socks5") else _socks4
    if proxy.scheme not in _REMOTE:
        host = _resolved(proxy, target, waiter)
    try:
        speak(_Talk(transport, proxy, waiter), proxy, host, target.port)
    except (socksio.SOCKSError, ValueError, IndexError) as error:
        _fail(proxy, f"its answer is no valid SOCKS: {error}")


def _resolved(proxy: Proxy, target: Target, waiter: Waiter) -> str:
    addresses = [str(address[0]) for _, address in resolve(target.host, target.port, waiter)]
    if proxy.scheme == "socks4":
        addresses = [address for address in addresses if ":" not in address]
    if not addresses:
        _fail(proxy, f"{target.host} has no IPv4 address, and SOCKS4 takes no other")
    return addresses[0].partition("%")[0]


class _Talk:
    """Question and answer with a SOCKS proxy. It reads no byte more than the answer has."""

    def __init__(self, transport: Transport, proxy: Proxy, waiter: Waiter) -> None:
        self._transport = transport
        self._proxy = proxy
        self._waiter = waiter

    def ask(self, connection: Any, request: Any) -> None:
        connection.send(request)
        write(self._transport, connection.data_to_send(), self._waiter)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = receive(self._transport, self._waiter, count - len(data))
            if not more:
                _fail(self._proxy, "it closed the connection")
            data += more
        return data


def _socks4(talk: _Talk, proxy: Proxy, host: str, port: int) -> None:
    from socksio import socks4  # noqa: PLC0415

    connection: Any = socks4.SOCKS4Connection(user_id=proxy.user or b"")
    if ":" in host:
        _fail(proxy, "SOCKS4 takes no IPv6 address")
    named = not host.replace(".", "").isdigit()
    kind = socks4.SOCKS4ARequest if named else socks4.SOCKS4Request
    command = socks4.SOCKS4Command.CONNECT
    talk.ask(connection, kind.from_address(command, (host, port), user_id=proxy.user or b""))
    reply = connection.receive_data(talk.read(8))
    if reply.reply_code is not socks4.SOCKS4ReplyCode.REQUEST_GRANTED:
        _fail(proxy, f"it answered {_words(reply.reply_code)}")


def _socks5(talk: _Talk, proxy: Proxy, host: str, port: int) -> None:
    from socksio import socks5  # noqa: PLC0415

    connection: Any = socks5.SOCKS5Connection()
    plain, password = socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED, None
    offered = [plain]
    if proxy.user is not None:
        password = socks5.SOCKS5AuthMethod.USERNAME_PASSWORD
        offered.append(password)
    talk.ask(connection, socks5.SOCKS5AuthMethodsRequest(offered))
    method = connection.receive_data(talk.read(2)).method
    if method not in offered:
        _fail(proxy, f"it wants another authentication: {_words(method)}")
    if method is password:
        request = socks5.SOCKS5UsernamePasswordRequest(proxy.user or b"", proxy.password)
        talk.ask(connection, request)
        if not connection.receive_data(talk.read(2)).success:
            _fail(proxy, "it refuses user and password")
    command = socks5.SOCKS5Command.CONNECT
    talk.ask(connection, socks5.SOCKS5CommandRequest.from_address(command, (host, port)))
    answer = talk.read(4)
    # What follows is the address it connected from (RFC 1928 section 6), which nobody needs.
    if answer[1] != 0:
        answer = answer[:2] + b"\0\1" + bytes(6)  # some leave it out where they refuse
    elif answer[3] == 3:
        answer += talk.read(1)
        answer += talk.read(answer[4] + 2)
    else:
        answer += talk.read((16 if answer[3] == 4 else 4) + 2)
    reply = connection.receive_data(answer)
    if reply.reply_code is not socks5.SOCKS5ReplyCode.SUCCEEDED:
        _fail(proxy, f"it answered {_words(reply.reply_code)}")


def _words(code: Any) -> str:
    return str(code.name).lower().replace("_", " ")
