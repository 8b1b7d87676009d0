"""From a URL to an open WebSocket: TCP, TLS, the upgrade, redirects.

Runs on the reader's thread. Every wait is the waiter's: cancellable, and bounded by one deadline.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import logging
import ssl
from dataclasses import dataclass
from socket import socket as Socket
from typing import Any, Optional, Sequence, Tuple

from .errors import ConnectError, ConnectTimeout, HandshakeError, ProxyError, detached
from .headers import Extensions, check_value, find, is_token, normalize_headers, parse_extensions
from .proxy import Proxy, find_proxy, open_tunnel, parse_proxy
from .tcp import connect_tcp
from .transport import READ, WRITE, Transport, Waiter
from .upgrade import REDIRECTS, Accept, Upgraded, UpgradeRequest, upgrade
from .urls import Target, join_url, parse_url

__all__ = ["OpenOptions", "Opened", "Target", "normalize_headers", "open_connection", "parse_url"]


#: Never sees a path, a query, user-info or a header field: any of them may be secret.
logger = logging.getLogger(__name__)


@dataclass
class OpenOptions:
    """How to open a connection; never changed. TypeError or ValueError for what cannot be meant.

    What `headers` carries beats `user_agent`, `origin` and the URL's user-info. A redirect to
    another origin takes along neither `headers`, `origin`, `host`, user-info nor `ssl_context`;
    `subprotocols`, `offer` and `user_agent` it does.
    """

    #: The user's header fields: what `normalize_headers` takes.
    headers: Any = ()
    #: Offered in this order (RFC 6455 section 1.9).
    subprotocols: Sequence[str] = ()
    #: The Origin field; None: none.
    origin: Optional[str] = None
    #: The Host field; None: the URL's host and port.
    host: Optional[str] = None
    #: The User-Agent field; None: none.
    user_agent: Optional[str] = "wsthread"
    #: For wss; None: ``ssl.create_default_context()``.
    ssl_context: Optional[ssl.SSLContext] = None
    #: A connected socket, for the first hop only. It belongs to the opening from the call on.
    socket: Optional[Socket] = None
    #: True: the proxy that the environment names, if any; a URL, or None.
    proxy: Any = None
    #: For a proxy that speaks TLS; None: ``ssl.create_default_context()``.
    proxy_ssl_context: Optional[ssl.SSLContext] = None
    #: The IP address and port (0: any) to connect from.
    local_address: Optional[Tuple[str, int]] = None
    #: Arguments of ``setsockopt``, applied before connecting. TCP_NODELAY is set in any case.
    sockopt: Sequence[Tuple[Any, ...]] = ()
    #: How many redirects are followed; 0: none.
    max_redirects: int = 3
    #: The value of Sec-WebSocket-Extensions (RFC 6455 section 9.1); None: no extension.
    offer: Optional[str] = None
    #: Called with the extensions the server chose, all of them offered. It returns what becomes
    #: `Opened.agreement`, or raises HandshakeError or ValueError.
    accept: Optional[Accept] = None

    def open(self, url: str, waiter: Waiter) -> Opened:
        """Open a connection with these: `open_connection`."""
        return open_connection(url, self, waiter)

    def __post_init__(self) -> None:
        self.headers = tuple(normalize_headers(self.headers))
        if isinstance(self.subprotocols, (str, bytes)):
            raise TypeError("subprotocols is a sequence of str")
        self.subprotocols = tuple(self.subprotocols)
        for name in self.subprotocols:
            _check_str("a subprotocol", name)
            if not is_token(name):
                raise ValueError(f"the subprotocol {name!r} is no token (RFC 6455 section 4.1)")
        if len(set(self.subprotocols)) < len(self.subprotocols):
            raise ValueError("subprotocols contains one twice")
        for name in ("origin", "host", "user_agent", "offer"):
            value = getattr(self, name)
            if value is not None:
                _check_str(name, value)
                setattr(self, name, check_value(name, value))
        if self.host == "":
            raise ValueError("host is empty")
        if self.offer:
            parse_extensions(self.offer)
        if isinstance(self.max_redirects, bool) or not isinstance(self.max_redirects, int):
            raise TypeError("max_redirects is an int")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects is 0 or more, not {self.max_redirects}")
        self._check_proxy()
        self._check_socket()

    def _check_proxy(self) -> None:
        if isinstance(self.proxy, str):
            self.proxy = parse_proxy(self.proxy)
        if not (self.proxy is None or self.proxy is True or isinstance(self.proxy, Proxy)):
            raise TypeError("proxy is True, a URL or None")

    def _check_socket(self) -> None:
        for name in ("ssl_context", "proxy_ssl_context"):
            if not isinstance(getattr(self, name), (ssl.SSLContext, type(None))):
                raise TypeError(f"{name} is an ssl.SSLContext")
        if self.socket is not None and (
            not isinstance(self.socket, Socket) or isinstance(self.socket, ssl.SSLSocket)
        ):
            raise TypeError("socket is a plain socket.socket; TLS, if any, is put over it")
        self.sockopt = tuple([tuple(option) for option in self.sockopt])
        for option in self.sockopt:
            if len(option) not in (3, 4):
                raise ValueError("sockopt is a sequence of setsockopt arguments, 3 or 4 each")
        if self.local_address is not None:
            address, port = self.local_address
            ipaddress.ip_address(address)  # a name would have to be resolved
            if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
                raise ValueError("local_address is an IP address and a port")


@dataclass
class Opened:
    """An open connection, and what was agreed on it."""

    transport: Transport
    #: What came behind the response head: the server's first frames.
    leftover: bytes
    subprotocol: Optional[str] = None
    #: Names with their parameters, each a name and a value or None.
    extensions: Extensions = ()
    #: What `OpenOptions.accept` made of them.
    agreement: object = None
    response_headers: Sequence[Tuple[str, str]] = ()


def open_connection(url: str, options: OpenOptions, waiter: Waiter) -> Opened:
    """Open a WebSocket.

    Raises ConnectError (ConnectTimeout, HandshakeError) and Cancelled. No socket is open then,
    and the error holds nothing of the connection. A URL that is wrong and a certificate that is
    refused show as ``__cause__``: a ValueError.
    """
    try:
        return _follow(url, options, waiter)
    except BaseException as error:
        if options.socket is not None:
            options.socket.close()
        if isinstance(error, OSError) and not isinstance(error, ConnectError):
            # Of a place that does not expect one: there is no descriptor left to read a file with.
            raise ConnectError(f"cannot open the connection: {error}") from detached(error)
        raise detached(error) from error.__cause__


def _follow(url: str, options: OpenOptions, waiter: Waiter) -> Opened:
    """Open a connection where the URL and then the redirects lead."""
    target = parse_url(url)
    left = options.max_redirects
    while True:
        try:
            return _hop(target, options, waiter)
        except HandshakeError as error:
            location = find(error.headers, "location")
            if error.status not in REDIRECTS or len(location) != 1:
                raise
            if left == 0:
                followed = options.max_redirects
                error.args = (f"{error}: redirected more than {followed} times",)
                raise
            answer = detached(error)
        left -= 1
        logger.debug("redirected with %d", answer.status)
        target, options = _redirect(target, options, answer, location[0])
        del answer


def _redirect(
    target: Target, options: OpenOptions, answer: HandshakeError, location: str
) -> Tuple[Target, OpenOptions]:
    """Return the next hop, and the options without what is not meant for it."""
    try:
        # Fields come as latin-1; what is beyond ASCII in a URL is UTF-8.
        location = location.encode("latin-1").decode("utf-8", "replace")
        following = join_url(target, location)
        if target.secure and not following.secure:
            raise ConnectError("it leads from TLS to plain text")
    except ConnectError as error:
        text = f"{answer}: the redirect is refused: {error}"
        raise HandshakeError(text, answer.status, answer.headers) from None
    options = dataclasses.replace(options, socket=None)
    if target.same_origin(following):
        return dataclasses.replace(following, authorization=target.authorization), options
    return following, dataclasses.replace(
        options, headers=(), origin=None, host=None, ssl_context=None
    )


def _hop(target: Target, options: OpenOptions, waiter: Waiter) -> Opened:
    """Connect to one target and upgrade."""
    name = f"{'wss' if target.secure else 'ws'}://{target.authority}"
    logger.debug("connecting to %s", name)
    transport = _connect(target, options, waiter)
    try:
        if target.secure:
            context = options.ssl_context or _default_context()
            _start_tls(transport, target.host, context, waiter)
        done = upgrade(transport, _request(target, options), waiter)
    except BaseException:
        transport.close()
        raise
    tls = transport.tls
    logger.debug("upgraded: %s, %s", name, "no TLS" if tls is None else tls.version())
    return _opened(transport, done)


def _opened(transport: Transport, done: Upgraded) -> Opened:
    return Opened(
        transport,
        done.leftover,
        subprotocol=done.subprotocol,
        extensions=done.extensions,
        agreement=done.agreement,
        response_headers=done.headers,
    )


def _connect(target: Target, options: OpenOptions, waiter: Waiter) -> Transport:
    """Return a transport to the target, without TLS."""
    sock = options.socket
    if sock is None:
        proxy = find_proxy(target, options.proxy, waiter)
        if proxy is not None:
            return _connect_by(proxy, target, options, waiter)
        return _connect_to(target.host, target.port, options, waiter)
    waiter.check()
    if sock.fileno() == -1:
        text = "the socket given is closed: it is good for one connection"
        raise ConnectError(text) from ValueError(text)
    waiter.sockets.append(sock)
    try:
        # Also where its time-out says so: others may have a copy of it, and the mode is for all.
        sock.setblocking(False)
        return Transport(sock)
    except OSError as error:
        raise ConnectError(f"the socket given is of no use: {error.strerror}") from detached(error)


def _connect_to(host: str, port: int, options: OpenOptions, waiter: Waiter) -> Transport:
    return Transport(connect_tcp(host, port, waiter, options.local_address, options.sockopt))


def _connect_by(proxy: Proxy, target: Target, options: OpenOptions, waiter: Waiter) -> Transport:
    """Return a transport to the target through a proxy, without TLS to the target."""
    transport = None
    try:
        try:
            transport = _connect_to(proxy.host, proxy.port, options, waiter)
            if proxy.scheme == "https":
                context = options.proxy_ssl_context or _default_context()
                _start_tls(transport, proxy.host, context, waiter)
        except ConnectTimeout:
            raise
        except ConnectError as error:
            raise ProxyError(f"{proxy.name}: {error}") from error.__cause__
        open_tunnel(transport, proxy, target, waiter)
    except BaseException:
        if transport is not None:
            transport.close()
        raise
    return transport


def _check_str(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} is a str, not {type(value).__name__}")


#: Reading the trusted certificates takes a while.
_create_context = functools.cache(ssl.create_default_context)


def _default_context() -> ssl.SSLContext:
    """Return the context of everybody who gave none."""
    context = _create_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # the default from Python 3.10 on
    if not context.cert_store_stats()["x509_ca"]:
        # No file of them could be read, perhaps for want of a descriptor: another time, maybe.
        _create_context.cache_clear()
    return context


def _start_tls(transport: Transport, host: str, context: ssl.SSLContext, waiter: Waiter) -> None:
    name = host.partition("%")[0].rstrip(".")
    descriptor = transport.fileno()
    try:
        transport.add_tls(context, name)
        while not transport.handshake():
            ready = waiter.wait({descriptor: READ | WRITE if transport.stalled else READ})
            if ready.get(descriptor, 0) & ~WRITE and not transport.handshake_input():
                raise ConnectError(f"{name} closed the connection during the TLS handshake")
    except (ConnectError, ConnectTimeout):
        raise
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of {name} is refused: {error.verify_message}"
        raise ConnectError(text) from detached(error)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConnectError(f"TLS with {name} failed: {reason}") from detached(error)


def _request(target: Target, options: OpenOptions) -> UpgradeRequest:
    fields = list(options.headers)
    given = {name.lower() for name, _ in fields}
    if target.authorization is not None and "authorization" not in given:
        fields.insert(0, ("Authorization", target.authorization))
    if options.user_agent is not None and "user-agent" not in given:
        fields.insert(0, ("User-Agent", options.user_agent))
    return UpgradeRequest(
        resource=target.resource,
        authority=options.host or target.authority,
        fields=fields,
        subprotocols=options.subprotocols,
        origin=None if "origin" in given else options.origin,
        offer=options.offer,
        accept=options.accept,
    )
