"""Through a proxy: HTTP CONNECT (RFC 9110 9.3.6), SOCKS4, SOCKS4a, SOCKS5 (RFC 1928 and 1929).

h11 and socksio speak the protocols, over our own transport: every wait is the waiter's.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, Optional, Tuple, Union
from urllib.parse import unquote_to_bytes

import h11

from .errors import ConnectError, HandshakeError, ProxyError, detached
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
_URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#\0-\x20\x7f\ud800-\udfff]*)/?")

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
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}"


def parse_proxy(url: str) -> Proxy:
    """Parse the URL of a proxy; without a scheme it is http. ValueError quotes nothing secret."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("a proxy's URL is of the form scheme://user:password@host:port")
    scheme = (found[1] or "http").lower()
    if scheme not in _PORTS:
        raise ValueError(f"a proxy's scheme is one of {', '.join(_PORTS)}")
    userinfo, at, host_port = found[2].rpartition("@")
    try:
        host, port = parse_host_port(host_port)
    except ConnectError:
        host = ""
    if not host:  # unquoted: where the @ was forgotten it is a password
        raise ValueError("host or port of the proxy's URL is malformed")
    user, _, password = userinfo.partition(":")
    names = unquote_to_bytes(user), unquote_to_bytes(password)
    if scheme.startswith("socks") and max(map(len, names)) > 255:
        raise ValueError("user and password for a SOCKS proxy are at most 255 bytes each")
    if scheme.startswith("socks4") and b"\0" in names[0]:
        raise ValueError("a user for a SOCKS4 proxy contains no zero byte")
    return Proxy(scheme, host, port or _PORTS[scheme], names[0] if at else None, names[1])


def find_proxy(target: Target, setting: Setting, waiter: Waiter) -> Optional[Proxy]:
    """Return the proxy for a target, or None. Raises ProxyError, ConnectTimeout, Cancelled."""
    if setting is not True:
        return setting or None
    # Costs time to import, and only an opening needs it.
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    names = ("wss", "https") if target.secure else ("ws", "http")
    url = next((proxies[name] for name in (*names, "socks", "all") if proxies.get(name)), None)
    if url is None:
        return None
    host = target.host.partition("%")[0].rstrip(".")
    authority = f"{_bracketed(host)}:{target.port}"
    try:
        # In a thread: on some systems it resolves names. `no_proxy` may have an address of IPv6
        # with brackets or without them.
        if waiter.call(lambda: proxy_bypass(host) or proxy_bypass(authority)):
            return None
        return parse_proxy(url)
    except (RuntimeError, ValueError) as error:  # no thread can be started; no URL
        raise ProxyError(f"the proxy that the environment names: {error}") from detached(error)


def open_tunnel(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    """Have the proxy connect the transport to the target.

    Raises ProxyError, ConnectTimeout, Cancelled, and ConnectError for a name that cannot be
    resolved. The caller closes the transport then.
    """
    tunnel = _tunnel_http if proxy.scheme in ("http", "https") else _tunnel_socks
    try:
        tunnel(transport, proxy, target, waiter)
    except (ConnectError, Cancelled):
        raise
    except OSError as error:
        text = f"the connection broke: {error.strerror or error}"
        raise ProxyError(f"{proxy.name}: {text}") from detached(error)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _fail(proxy: Proxy, text: str, status: Optional[int] = None) -> NoReturn:
    raise ProxyError(f"{proxy.name}: {text}", status)


def _refuse(proxy: Proxy, text: str) -> NoReturn:
    """Fail for what the proxy's or the target's URL says: it is not tried again."""
    raise ProxyError(f"{proxy.name}: {text}") from ValueError(text)


def _tunnel_http(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    authority = f"{_bracketed(target.host.partition('%')[0])}:{target.port}"
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
        _fail(proxy, "it sent data of its own behind its answer")


def _tunnel_socks(transport: Transport, proxy: Proxy, target: Target, waiter: Waiter) -> None:
    try:
        import socksio  # noqa: F401, PLC0415
    except ImportError as error:
        text = "SOCKS takes the package socksio: pip install 'wsthread[proxy]'"
        raise ProxyError(f"{proxy.name}: {text}") from detached(error)
    host = target.host.partition("%")[0]  # a zone is of no meaning to the proxy
    if proxy.scheme.startswith("socks4") and ":" in host:
        _refuse(proxy, "SOCKS4 takes no IPv6 address")
    if proxy.scheme not in _REMOTE:
        host = _resolved(proxy, target, waiter)
    speak = _socks5 if proxy.scheme.startswith("socks5") else _socks4
    speak(_Talk(transport, proxy, waiter), proxy, (host, target.port))


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

    def ask(self, request: Any, count: int) -> bytes:
        """Send a request of socksio's; return the first bytes of the answer."""
        write(self._transport, request.dumps(), self._waiter)
        return self.read(count)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = receive(self._transport, self._waiter, count - len(data))
            if not more:
                _fail(self._proxy, "it closed the connection")
            data += more
        return data


# socksio makes the requests. Its parser of answers wants them whole, and some proxies end theirs
# where they have said why they refuse; what it makes of the rest nobody needs.


def _socks4(talk: _Talk, proxy: Proxy, address: Tuple[str, int]) -> None:
    from socksio import socks4  # noqa: PLC0415

    kind = socks4.SOCKS4ARequest if proxy.scheme in _REMOTE else socks4.SOCKS4Request
    if address[0].replace(".", "").isdigit():
        kind = socks4.SOCKS4Request
    connect = socks4.SOCKS4Command.CONNECT
    version, code = talk.ask(kind.from_address(connect, address, user_id=proxy.user or b""), 2)
    if version != 0:
        _fail(proxy, "its answer is no SOCKS4")
    if code != 0x5A:
        _fail(proxy, f"it answered {_words(socks4.SOCKS4ReplyCode, code)}")
    talk.read(6)  # an address of no meaning


def _socks5(talk: _Talk, proxy: Proxy, address: Tuple[str, int]) -> None:
    """Connect as RFC 1928 says, with the sub-negotiation of RFC 1929."""
    from socksio import socks5  # noqa: PLC0415

    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if proxy.user is not None:
        methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
    version, method = talk.ask(socks5.SOCKS5AuthMethodsRequest(methods), 2)
    if version != 5:
        _fail(proxy, "its answer is no SOCKS5")
    if bytes([method]) not in methods:
        _refuse(
            proxy, f"it wants another authentication: {_words(socks5.SOCKS5AuthMethod, method)}"
        )
    if method == 2:
        login = socks5.SOCKS5UsernamePasswordRequest(proxy.user or b"", proxy.password)
        if talk.ask(login, 2)[1] != 0:
            _refuse(proxy, "it refuses user and password")
    connect = socks5.SOCKS5Command.CONNECT
    version, code = talk.ask(socks5.SOCKS5CommandRequest.from_address(connect, address), 2)
    if version != 5:
        _fail(proxy, "its answer is no SOCKS5")
    if code != 0:
        _fail(proxy, f"it answered {_words(socks5.SOCKS5ReplyCode, code)}")
    kind = talk.read(2)[1]  # of the address it connects from, which nobody needs
    if kind == 3:
        talk.read(talk.read(1)[0] + 2)
    elif kind in (1, 4):
        talk.read((4 if kind == 1 else 16) + 2)
    else:
        _fail(proxy, f"its answer has an address of the unknown type {kind}")


def _words(codes: Any, code: int) -> str:
    known = {member.value: member.name for member in codes}
    return str(known.get(bytes([code]), f"{code}")).lower().replace("_", " ")
