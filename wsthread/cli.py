"""The command line: ``python -m wsthread``, and the console script ``wsthread``."""

from __future__ import annotations

import argparse
import base64
import getpass
import math
import os
import re
import ssl
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import command, demo
from ._version import __version__
from .client import WebSocketClient
from .errors import ConnectError
from .headers import normalize_headers
from .urls import parse_url

#: Exit statuses: what a shell expects of a command line that makes no sense, and of Ctrl-C.
USAGE = command.USAGE
INTERRUPTED = 130

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_EPILOG = """\
At a terminal it is a prompt (/help says more). Otherwise lines of the input are sent as text,
and messages go to the output; when the input has ended and nothing came for a while, it closes.

commands:
  demo                  see the client work, and what is left over
  echo-server           a server to try things with

exit status:
  0 closed in order   1 not opened   2 wrong usage   3 closed with another code   4 lost
  5 not all was sent or received     128+N ended by signal N (130: Ctrl-C)
"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command line (default: ``sys.argv``) and return its exit status.

    Raises SystemExit where argparse does: after ``--help`` and for wrong usage (status 2).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command.reserve_standard_descriptors()
    try:
        if given[:1] in (["demo"], ["echo-server"]):
            options = _command_parser().parse_args(given)
            status: int = options.run(options)
            return status
        parser = _client_parser()
        return _talk(parser, parser.parse_args(given))
    except KeyboardInterrupt:
        return INTERRUPTED


def _program() -> str:
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return name if name == "wsthread" else "python -m wsthread"


# The commands beside the client.


def _command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_program())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_echo_server(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "connect to a server of its own, talk, disconnect, and count what is left over"
    parser = commands.add_parser("demo", help=text, description=f"Demo: {text}.")
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=3,
        metavar="N",
        help="how often to connect and disconnect, at least 2 (default: %(default)s)",
    )
    parser.set_defaults(run=lambda options: demo.run(options.rounds))


def _rounds(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("the first round warms up; at least one must follow")
    return number


def _add_echo_server(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "send back whatever comes, until Ctrl-C; prints the URL it listens on"
    parser = commands.add_parser("echo-server", help=text, description=f"Echo server: {text}.")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=0, metavar="N", help="port (default: one that is free)"
    )
    parser.set_defaults(run=_run_echo_server)


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError("a port is from 0 to 65535")
    return number


def _run_echo_server(options: argparse.Namespace) -> int:
    from . import echo  # noqa: PLC0415 - the demo counts objects: it gets no more than it needs

    return echo.run(options.host, options.port)


# The client.


def _client_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        usage="%(prog)s [options] URL\n       %(prog)s demo [--rounds N]\n"
        "       %(prog)s echo-server [--host ADDRESS] [--port N]",
        description="Talk to a WebSocket server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("url", metavar="URL", help="ws:// or wss:// (http, https mean the same)")
    parser.add_argument("--version", action="version", version=f"wsthread {__version__}")
    _add_request(parser.add_argument_group("request"))
    _add_connection(parser.add_argument_group("connection"))
    _add_talk(parser.add_argument_group("talk"))
    return parser


def _add_request(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-H",
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="'NAME: VALUE'",
        help="a further header field; may be repeated",
    )
    add(
        "--subprotocol",
        action="append",
        default=[],
        metavar="NAME",
        help="a subprotocol to offer; may be repeated, best first",
    )
    add("--origin", metavar="ORIGIN", help="the Origin header field")
    add(
        "--auth",
        metavar="USER[:PASSWORD]",
        help="Basic authorization; without a password it is asked for",
    )


def _add_connection(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--cert", metavar="FILE", help="client certificate (PEM), with its chain")
    add("--key", metavar="FILE", help="its private key (PEM; default: in the same file)")
    add("--cacert", metavar="FILE", help="trust these authorities (PEM) instead of the system's")
    add("--insecure", action="store_true", help="verify neither certificate nor host name")
    add(
        "--proxy",
        metavar="URL",
        help="http, https, socks4, socks4a, socks5 or socks5h; none: no proxy "
        "(default: what the environment names)",
    )
    add("--reconnect", action="store_true", help="come back when the connection is lost")
    add(
        "--ping-interval",
        type=_seconds,
        default=20.0,
        metavar="SECONDS",
        help="how often to ping; 0: never (default: %(default)g)",
    )
    add("--no-compression", action="store_true", help="do not offer permessage-deflate")
    add(
        "--max-size",
        type=_size,
        default=_size("16M"),
        metavar="BYTES",
        help="the largest message to receive, also as 64K, 16M, 1G; 0: no limit (default: 16M)",
    )
    add(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the whole opening; 0: for ever (default: %(default)g)",
    )


def _add_talk(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--json", action="store_true", help="write every event as a line of JSON")
    counts = group.add_mutually_exclusive_group()
    counts.add_argument(
        "-1",
        dest="count",
        action="store_const",
        const=1,
        help="wait for one message, then close",
    )
    counts.add_argument("--count", type=_count, metavar="N", help="wait for N messages, then close")
    add(
        "--linger",
        type=_linger,
        metavar="SECONDS",
        help="close when the input has ended and nothing came for this long; inf: never "
        "(default: 1; with -1 and --count: inf)",
    )


def _header(text: str) -> Tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError("a header field is written 'Name: value'")
    try:
        return normalize_headers([(name, value.strip())])[0]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> Optional[float]:
    """Return a time; None for 0, which turns off what takes it."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError("a number of seconds, 0 or more")
    return seconds or None


def _linger(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError("a number of seconds, 0 or more, or inf")
    return seconds


def _size(text: str) -> Optional[int]:
    """Return a number of bytes; None for 0: no limit."""
    found = re.fullmatch("([0-9]+)([KMG]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError("a number of bytes, as 65536, 64K, 16M or 1G")
    return int(found.group(1)) * _SIZES[found.group(2)] or None


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a number of messages, 1 or more")
    return number


def _talk(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        parse_url(options.url)
        client = WebSocketClient(options.url, **_client_arguments(parser, options))
    except (ConnectError, ValueError) as error:  # quotes nothing secret
        parser.error(str(error))
    if os.isatty(0) and os.isatty(1) and not options.json and options.count is None:
        from . import interactive  # noqa: PLC0415 - only one of the two is needed

        return interactive.run(client)
    from . import pipe  # noqa: PLC0415

    return pipe.run(client, options.json, options.count, options.linger)


def _client_arguments(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> Dict[str, Any]:
    """Return what the client is made with. Raises ValueError."""
    headers: List[Tuple[str, str]] = list(options.header)
    if options.auth is not None:
        headers.append(("Authorization", _basic(parser, options.auth)))
    return {
        "headers": headers,
        "subprotocols": options.subprotocol,
        "origin": options.origin,
        "ssl_context": _ssl_context(options),
        "proxy": {None: True, "none": None}.get(options.proxy, options.proxy),
        "compression": None if options.no_compression else "deflate",
        "reconnect": options.reconnect,
        "ping_interval": options.ping_interval,
        "max_message_size": options.max_size,
        "connect_timeout": options.timeout,
    }


def _ssl_context(options: argparse.Namespace) -> Optional[ssl.SSLContext]:
    """Return the TLS settings; None where nothing was said. Raises ValueError."""
    if options.key and not options.cert:
        raise ValueError("--key goes with --cert")
    if not (options.cert or options.cacert or options.insecure):
        return None
    try:
        context = ssl.create_default_context(cafile=options.cacert)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"cannot load the certificates: {error}") from error
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _basic(parser: argparse.ArgumentParser, auth: str) -> str:
    """Return the value of the Authorization header field (RFC 7617)."""
    user, colon, password = auth.partition(":")
    if not colon:
        if not os.isatty(0):
            parser.error("--auth without a password asks for it, and there is no terminal")
        password = getpass.getpass(f"Password of {command.printable(user)}: ")
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
