"""The command line: ``python -m wsthread``."""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from . import demo
from ._version import __version__

#: Exit statuses: what a shell expects of a command line that makes no sense, and of Ctrl-C.
USAGE = 2
INTERRUPTED = 130


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command line (default: ``sys.argv``) and return its exit status.

    Raises SystemExit where argparse does: after ``--help`` and for wrong usage (status 2).
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wsthread", description="Threaded, callback-based WebSocket client."
    )
    parser.add_argument("--version", action="version", version=f"wsthread {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "connect to a server of its own, talk, disconnect, and count what is left over"
    command = commands.add_parser("demo", help=text, description=f"Demo: {text}.")
    command.add_argument(
        "--rounds",
        type=_rounds,
        default=3,
        metavar="N",
        help="how often to connect and disconnect, at least 2 (default: %(default)s)",
    )
    command.set_defaults(run=lambda options: demo.run(options.rounds))


def _rounds(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("the first round warms up; at least one must follow")
    return number
