"""WebSocket URLs (RFC 6455 section 3): strictly parsed, never quoted in an error as a whole."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from typing import NoReturn, Optional, Tuple
from urllib.parse import quote, unquote_to_bytes, urljoin

from .errors import ConnectError

_SECURE = {"ws": False, "wss": True, "http": False, "https": True}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_HOST_PORT = re.compile(r"(?:\[([^][]*)\]|([^][:]*))(?::([0-9]*))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
_ALL_VISIBLE = re.compile(r"[!-~]*")
_BLANK = re.compile(r"[\0- \x7f]")


@dataclass
class Target:
    """A parsed URL: where to connect, and what to ask for there. Never changed."""

    secure: bool  # whether TLS is spoken
    host: str  # lower case, in ASCII (IDNA); an IPv6 address without its brackets
    port: int
    resource: str  # path with parameters and query, percent-encoded; no fragment
    authorization: Optional[str] = field(default=None, repr=False)  # Basic, of the user-info

    @property
    def authority(self) -> str:
        """The value of the Host field: the port only where it is not the scheme's own."""
        address = self.host.partition("%")[0]  # a zone is of no meaning to the server
        host = f"[{address}]" if ":" in address else address
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def same_origin(self, other: Target) -> bool:
        """Whether what was meant for this target may go to the other: same origin, or ws to wss.

        The change to TLS keeps the host, and the port unless both are their scheme's own.
        """
        if self.host != other.host or (self.secure and not other.secure):
            return False
        upgraded = not self.secure and other.secure and (self.port, other.port) == (80, 443)
        return self.port == other.port or upgraded


def parse_url(url: str) -> Target:
    """Parse a ws, wss, http or https URL; the last two stand for the first two.

    ConnectError, caused by a ValueError, names what is wrong and quotes nothing secret.
    """
    if not isinstance(url, str):
        _bad(f"a URL is a str, not {type(url).__name__}")
    if _BLANK.search(url):
        _bad("white space or a control character in the URL")
    found = _URL.match(url)
    if found is None:
        _bad("the URL is not of the form ws://host/path or wss://host/path")
    scheme, authority, resource = found.groups()
    secure = _SECURE.get(scheme.lower())
    if secure is None:
        _bad(f"the URL's scheme is ws or wss (http, https), not {scheme}")
    if "\\" in authority:
        _bad("a backslash in the URL's host")  # some read it as the end of the host
    userinfo, _, host_port = authority.rpartition("@")
    host, port = parse_host_port(host_port)
    if not resource.startswith("/"):
        resource = "/" + resource
    try:
        if not _ALL_VISIBLE.fullmatch(resource):
            resource = quote(resource, safe=_VISIBLE)
        authorization = _basic(userinfo) if userinfo else None
    except UnicodeEncodeError:
        _bad("the URL contains a lone surrogate")
    if port is None:
        port = 443 if secure else 80
    return Target(secure, host, port, resource, authorization)


def join_url(base: Target, location: str) -> Target:
    """Return what a Location field means, seen from `base` (RFC 9110 10.2.2).

    User-info in it is ignored: it would be somebody else's word in the user's name.
    """
    scheme = "https" if base.secure else "http"
    try:
        url = urljoin(f"{scheme}://{base.authority}{base.resource}", location)
    except ValueError:
        _bad("the URL's host is malformed")
    target = parse_url(url)
    return Target(target.secure, target.host, target.port, target.resource)


def _bad(text: str) -> NoReturn:
    raise ConnectError(text) from ValueError(text)


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    plain = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return "Basic " + base64.b64encode(plain).decode("ascii")


def parse_host_port(host_port: str) -> Tuple[str, Optional[int]]:
    """Parse ``host``, ``host:port`` or ``[address]:port``. Raises ConnectError."""
    found = _HOST_PORT.fullmatch(host_port)
    if found is None:
        _bad("the URL's host and port are malformed")  # unquoted: may be part of a password
    address, name, digits = found.groups()
    if digits and not (len(digits) < 6 and 0 < int(digits) < 65536):
        _bad(f"the URL's port is from 1 to 65535, not {digits[:20]}")
    host = _parse_name(name) if address is None else _parse_ipv6(address)
    return host, int(digits) if digits else None


def _parse_ipv6(text: str) -> str:
    address, _, zone = text.partition("%")
    try:
        host = str(ipaddress.IPv6Address(address))
    except ValueError:
        _bad(f"the URL's host is no IPv6 address: {text!r}")
    zone = zone[2:] if zone.startswith("25") else zone  # RFC 6874 writes %25 for the %
    if not re.fullmatch(r"[A-Za-z0-9._~-]*", zone):
        _bad(f"the URL's IPv6 zone is malformed: {text!r}")
    return f"{host}%{zone}" if zone else host


def _parse_name(text: str) -> str:
    if not text:
        _bad("the URL has no host")
    host = text.lower()
    # The limit comes before IDNA, which takes quadratic time.
    if len(host) <= 253 and not host.isascii():
        try:
            host = host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            _bad(f"the URL's host is no valid internationalised name: {text!r}")
    if len(host) > 253 or not _NAME.fullmatch(host):
        _bad(f"the URL's host is no valid name: {text[:300]!r}")
    if _NUMBER.fullmatch(host[:-1] if host.endswith(".") else host):
        # The resolver would take 127.1 or 0x7f.1 for an address in ways nobody expects.
        try:
            socket.inet_pton(socket.AF_INET, host)
        except OSError:
            _bad(f"the URL's host is no IPv4 address: {text!r}")
    return host
