"""The command line; see the package's docstring."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Optional

from .clients import CLIENTS
from .install import SUITE, InstallError, default_cache, find_python27, suite_python
from .judge import case_patterns, describe, report, summary
from .run import Run, RunError
from .server import ServerError


def parse_arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run the Autobahn test suite's client cases.",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["1-7,9,10"],
        metavar="CASES",
        help="groups (1-7,9), patterns ('12.1.*'), cases (5.3), 'spread' (of 12 and 13) or 'all' "
        "(default: 1-7,9,10)",
    )
    parser.add_argument("--client", choices=list(CLIENTS), default="wsthread")
    parser.add_argument(
        "--dispatcher",
        choices=["inline", "thread"],
        default="inline",
        help="where wsthread runs the echoing callback (default: inline)",
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write the results here")
    parser.add_argument(
        "--strict", action="store_true", help="no Python 2.7 is an error, not a reason to skip"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    parser.add_argument("--lanes", type=int, default=2, help="cases run side by side (default: 2)")
    parser.add_argument(
        "--case-timeout", type=float, default=120.0, metavar="SECONDS", help="default: 120"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each case")
    options = parser.parse_args(argv)
    try:
        options.patterns = case_patterns(options.cases)
    except ValueError as error:
        parser.error(str(error))
    if options.lanes < 1:
        parser.error("--lanes must be at least 1")
    return options


def main(argv: Optional[List[str]] = None) -> int:
    options = parse_arguments(argv)
    # So that a run that is told to end still ends its servers and removes its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    python27 = find_python27()
    if python27 is None:
        print("skipped: no CPython 2.7 with pip found (set WSTHREAD_PYTHON27 to name one)")
        return 1 if options.strict else 0
    version = CLIENTS[options.client](options.dispatcher).version()
    started = time.monotonic()
    run = Run(
        (options.client, options.dispatcher),
        f"{options.client}-{version}",
        options.case_timeout,
        options.verbose,
    )
    try:
        python = suite_python(python27, options.cache)
        with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
            run.run(python, options.patterns, options.lanes, Path(directory))
    except (InstallError, RunError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = [result for result in run.results if not result.passed]
    for result in failed:
        print(describe(result))
    seconds = time.monotonic() - started
    python_version = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{options.client} {version}, {python_version}, {SUITE}: {seconds:.0f} s")
    print(summary(run.results))
    print(f"{len(run.results) - len(failed)} of {len(run.results)} cases passed")
    if options.report:
        facts = {
            "client": options.client,
            "version": version,
            "python": python_version,
            "suite": SUITE,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "seconds": round(seconds, 1),
            "selection": options.patterns,
        }
        if options.client == "wsthread":
            facts["dispatcher"] = options.dispatcher
        text = json.dumps(report(run.results, **facts), indent=1, sort_keys=False)
        options.report.write_text(text + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
