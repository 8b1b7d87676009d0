"""websocket-client's options as the arguments of a WebSocketClient, and its errors for ours."""

from __future__ import annotations

import copy
import http
import ipaddress
import logging
import os
import socket as socket_module
import ssl
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union
from urllib.parse import quote

from websocket import (
    WebSocketAddressException,
    WebSocketBadStatusException,
    WebSocketConnectionClosedException,
    WebSocketException,
    WebSocketPayloadException,
    WebSocketProtocolException,
    WebSocketProxyException,
    WebSocketTimeoutException,
    getdefaulttimeout,
)

from .errors import (
    CloseCode,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HandshakeError,
    NotConnected,
    ProtocolError,
    ProxyError,
    SendTimeout,
)
from .urls import Target, parse_url

logger = logging.getLogger("websocket")

#: Seconds for the whole opening where ``setdefaulttimeout`` gave no time.
_CONNECT_TIMEOUT = 60.0
_PROXY_TYPES = ("http", "socks4", "socks4a", "socks5", "socks5h")
#: Fields that are given with browsers' headers, and that the handshake makes itself.
_HANDSHAKE = frozenset(
    {
        "connection",
        "upgrade",
        "sec-websocket-key",
        "sec-websocket-version",
        "sec-websocket-extensions",
        "content-length",
    }
)

Header = Union[Sequence[str], Mapping[str, Optional[str]]]


@dataclass(frozen=True)
class RunOptions:
    """The arguments of one `run_forever` that concern the opening, as they were given."""

    sockopt: Sequence[Tuple[Any, ...]] = ()
    sslopt: Optional[Mapping[str, Any]] = None
    http_proxy_host: Optional[str] = None
    http_proxy_port: Union[int, str, None] = None
    http_no_proxy: Optional[Sequence[str]] = None
    http_proxy_auth: Optional[Tuple[str, ...]] = None
    http_proxy_timeout: Optional[float] = None
    host: Optional[str] = None
    origin: Optional[str] = None
    suppress_origin: bool = False
    proxy_type: Optional[str] = None


def check_url(url: str) -> Target:
    """Parse a ws or wss URL; ValueError for any other."""
    try:
        target = parse_url(url)
    except ConnectError as error:
        raise ValueError(str(error)) from None
    if url.split(":", 1)[0].lower() not in ("ws", "wss"):
        raise ValueError("the URL's scheme is ws or wss")
    return target


def client_arguments(
    url: str,
    options: RunOptions,
    header: Optional[Header],
    cookie: Optional[str],
    subprotocols: Optional[Sequence[str]],
    sock: Optional[socket_module.socket],
) -> Dict[str, Any]:
    """Return url and keyword arguments for one attempt with a `WebSocketClient`.

    ValueError, TypeError and WebSocketException for what cannot be meant.
    """
    target = check_url(url)
    fields, owned = _fields(header)
    if cookie:
        fields.append(("Cookie", cookie))
    origin = options.origin
    if origin is None and not options.suppress_origin:
        origin = f"{'https' if target.secure else 'http'}://{target.authority}"
    if subprotocols is None and "sec-websocket-protocol" in owned:
        subprotocols = [name.strip() for name in owned["sec-websocket-protocol"].split(",")]
    host = options.host or owned.get("host")
    timeout = getdefaulttimeout() or _CONNECT_TIMEOUT
    if options.http_proxy_host and options.http_proxy_timeout:
        timeout = options.http_proxy_timeout
    return {
        "url": url,
        "headers": fields,
        "subprotocols": tuple(subprotocols or ()),
        "origin": None if options.suppress_origin else origin,
        "host": host or None,
        "user_agent": None,
        "ssl_context": _ssl_context(options.sslopt or {}) if target.secure else None,
        "proxy": _proxy(target, options),
        "socket": sock,
        "sockopt": tuple(options.sockopt or ()),
        "compression": None,
        "connect_timeout": timeout,
        "ping_interval": None,
        "reconnect": False,
        "max_message_size": None,
    }


def _fields(header: Optional[Header]) -> Tuple[List[Tuple[str, str]], Dict[str, str]]:
    """Return the header fields as pairs, and those that have arguments of their own by name."""
    if header is None:
        pairs = []
    elif isinstance(header, Mapping):
        pairs = [(name, value) for name, value in header.items() if value is not None]
    else:
        pairs = []
        for line in header:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError("a header is of the form 'Name: value'")
            pairs.append((name.strip(), value.strip()))
    fields, owned = [], {}
    for name, value in pairs:
        lower = name.lower()
        if lower in ("host", "sec-websocket-protocol"):
            owned[lower] = value
        elif lower in _HANDSHAKE:
            logger.debug("the header %s is the handshake's own; yours is not sent", name)
        else:
            fields.append((name, value))
    return fields, owned


# TLS.


class _NamedContext(ssl.SSLContext):
    """A context that verifies, and asks for, another name than the URL's (``server_hostname``)."""

    inner: ssl.SSLContext
    name: str

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        options["server_hostname"] = self.name
        return self.inner.wrap_bio(*args, **options)


def _ssl_context(sslopt: Mapping[str, Any]) -> ssl.SSLContext:
    """Make a context of websocket-client's ``sslopt``; it verifies unless told otherwise."""
    context = sslopt.get("context") or _make_context(sslopt)
    name = sslopt.get("server_hostname")
    if name:
        named = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
        named.inner, named.name = context, name
        return named
    assert isinstance(context, ssl.SSLContext)
    return context


def _make_context(sslopt: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(sslopt.get("ssl_version", ssl.PROTOCOL_TLS_CLIENT))
    verify = sslopt.get("cert_reqs", ssl.CERT_REQUIRED)
    if verify == ssl.CERT_NONE and sslopt.get("check_hostname", False):
        raise WebSocketException("check_hostname needs cert_reqs other than CERT_NONE")
    context.check_hostname = verify != ssl.CERT_NONE and sslopt.get("check_hostname", True)
    context.verify_mode = verify
    if os.environ.get("SSLKEYLOGFILE"):
        context.keylog_filename = os.environ["SSLKEYLOGFILE"]
    try:
        if verify != ssl.CERT_NONE:
            _load_authorities(context, sslopt)
        if sslopt.get("certfile"):
            context.load_cert_chain(
                sslopt["certfile"], sslopt.get("keyfile"), sslopt.get("password")
            )
        if "cert_chain" in sslopt:
            context.load_cert_chain(*sslopt["cert_chain"])
        if "ciphers" in sslopt:
            context.set_ciphers(sslopt["ciphers"])
        if "ecdh_curve" in sslopt:
            context.set_ecdh_curve(sslopt["ecdh_curve"])
    except (OSError, TypeError, ValueError) as error:
        raise WebSocketException(f"sslopt: {error}") from error
    return context


def _load_authorities(context: ssl.SSLContext, sslopt: Mapping[str, Any]) -> None:
    cafile, capath = sslopt.get("ca_certs"), sslopt.get("ca_cert_path")
    bundle = os.environ.get("WEBSOCKET_CLIENT_CA_BUNDLE", "")
    if cafile is None and os.path.isfile(bundle):
        cafile = bundle
    elif capath is None and os.path.isdir(bundle):
        capath = bundle
    if cafile or capath:
        context.load_verify_locations(cafile, capath)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)


# Proxies.


def _proxy(target: Target, options: RunOptions) -> Union[bool, str, None]:
    """Return the `proxy` argument: True leaves it to the environment."""
    if _excluded(target.host, options.http_no_proxy or ()):
        return None
    host = options.http_proxy_host
    if not host:
        return True
    named = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    if not options.http_no_proxy and _excluded(target.host, named.replace(" ", "").split(",")):
        return None
    kind = options.proxy_type or "http"
    if kind not in _PROXY_TYPES:
        raise WebSocketProxyException(f"proxy_type is one of {', '.join(_PROXY_TYPES)}")
    if not options.http_proxy_port:
        raise WebSocketProxyException("http_proxy_host needs http_proxy_port")
    login = ""
    if options.http_proxy_auth and options.http_proxy_auth[0]:
        login = ":".join(quote(part or "", safe="") for part in options.http_proxy_auth) + "@"
    address = f"[{host}]" if ":" in host else host
    return f"{kind}://{login}{address}:{options.http_proxy_port}"


def _excluded(host: str, names: Sequence[str]) -> bool:
    """Whether a host is one of those, below one of those, or in one of those networks."""
    for name in filter(None, names):
        bare = name.lstrip(".").lower()
        if name == "*" or host == bare or host.endswith("." + bare):
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue  # one of the two is a name
    return False


# Errors.


def translate(error: Optional[BaseException]) -> Exception:
    """Return what websocket-client raises where this library has `error` (None: it closed)."""
    if error is None:
        return WebSocketConnectionClosedException("the connection is closed")
    translated = _translate(error)
    translated.__cause__ = error
    return translated


def _translate(error: BaseException) -> Exception:
    text = str(error)
    # A copy: the original is the client's, which a raised error's frames hold.
    cause = copy.copy(error.__cause__)
    if isinstance(error, HandshakeError):
        return _translate_handshake(error)
    if isinstance(error, ProxyError):
        return WebSocketProxyException(text)
    if isinstance(error, (ConnectTimeout, SendTimeout)):
        return WebSocketTimeoutException(text)
    if isinstance(error, ConnectError):
        if isinstance(cause, socket_module.gaierror):
            return WebSocketAddressException(cause)
        return cause if isinstance(cause, OSError) else WebSocketException(text)
    if isinstance(error, ProtocolError):
        payload = error.code == CloseCode.INVALID_DATA
        return (WebSocketPayloadException if payload else WebSocketProtocolException)(text)
    if isinstance(error, (ConnectionClosed, NotConnected)):
        if isinstance(cause, ConnectionResetError):
            return cause
        return WebSocketConnectionClosedException(text)
    return WebSocketException(text)


def _translate_handshake(error: HandshakeError) -> Exception:
    status = error.status
    if status is None and error.__cause__ is None:
        return WebSocketConnectionClosedException(str(error))
    if status is None or status < 200 or 300 <= status < 400:
        return WebSocketException(str(error))
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    headers = {name.lower(): value for name, value in error.headers}
    return WebSocketBadStatusException(str(error), status, phrase, headers, error.body or None)
