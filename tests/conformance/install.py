"""The suite's own environment: a virtualenv of CPython 2.7, made once and cached."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Optional

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SUITE = "autobahntestsuite==25.10.1"
VIRTUALENV = "virtualenv==20.15.1"  # the newest series that still makes 2.7 environments
PROBE = "import sys, pip; assert sys.version_info[:2] == (2, 7)"
INSTALL_TIMEOUT = 900.0


class InstallError(Exception):
    """The environment could not be made; the text holds the tool's output."""


def python27_environ(**extra: str) -> Dict[str, str]:
    """The environment for a Python 2.7 process: nothing of ours leaks into it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environ.update(extra, PYTHONUNBUFFERED="1")
    return environ


def python27_candidates() -> List[str]:
    """Where a CPython 2.7 may be, best guess first."""
    chosen = os.environ.get("WSTHREAD_PYTHON27")
    if chosen:
        return [chosen]
    found = [path for path in [shutil.which("python2.7")] if path]
    for root in [os.environ.get("PYENV_ROOT"), os.path.expanduser("~/.pyenv")]:
        if root:
            pattern = os.path.join(glob.escape(root), "versions", "2.7*", "bin", "python2.7")
            found += sorted(glob.glob(pattern), reverse=True)
    return found


def find_python27() -> Optional[str]:
    """The first candidate that runs, is 2.7 and has pip (a pyenv shim may exist and fail)."""
    for candidate in python27_candidates():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [candidate, "-c", PROBE],
                check=True,
                capture_output=True,
                timeout=30,
                env=python27_environ(),
            )
            return candidate
    return None


def default_cache() -> Path:
    """The user's cache directory for this driver."""
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData" / "Local")))
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "wsthread-conformance"


def suite_python(python27: str, cache: Path) -> Path:
    """A Python 2.7 that has the suite installed; makes the environment where needed.

    Safe against interruption: the environment counts only once its marker is
    written, the last step. Safe against runs at the same time: a lock file, which
    the system unlocks when its holders are gone; the installing processes hold it
    too, so that none is still at work where another run begins. A virtualenv
    cannot be moved, so it is built in place.

    Raises InstallError, with the output of what failed.
    """
    cache.mkdir(parents=True, exist_ok=True)
    home = cache.resolve() / SUITE.replace("==", "-")
    scripts = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    python, marker = home / "venv" / scripts, home / "complete"
    with _locked(cache / (home.name + ".lock")) as lock:
        if marker.exists() and _imports_suite(python):
            return python
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing {SUITE} in {home} (once) ...", flush=True)
        boot = home / "boot"
        # Into a directory of ours, not into the user's Python 2.7.
        _run([python27, "-m", "pip", "install", "--target", str(boot), VIRTUALENV], lock)
        data = ["--app-data", str(home / "app-data"), "--no-periodic-update"]
        _run(
            [python27, "-m", "virtualenv", *data, str(home / "venv")],
            lock,
            PYTHONPATH=str(boot),
        )
        _run([str(python), "-m", "pip", "install", SUITE], lock)
        marker.write_text(SUITE + "\n")
    return python


def _imports_suite(python: Path) -> bool:
    """Whether the cached environment still works (its Python 2.7 may have gone)."""
    try:
        command = [str(python), "-c", "import autobahntestsuite"]
        return not subprocess.run(
            command, capture_output=True, timeout=60, env=python27_environ()
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: List[str], lock: int, **environ: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_TIMEOUT,
            pass_fds=() if sys.platform == "win32" else (lock,),
            env=python27_environ(**environ),
        )
    except subprocess.TimeoutExpired as error:
        output = (error.output or b"").decode(errors="replace")
        text = f"no end after {INSTALL_TIMEOUT:.0f} s: {' '.join(command)}\n{output}"
        raise InstallError(text) from None
    except OSError as error:
        raise InstallError(f"{error}: {' '.join(command)}") from error
    if done.returncode:
        output = done.stdout.decode(errors="replace")
        raise InstallError(f"exit status {done.returncode}: {' '.join(command)}\n{output}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    with open(path, "a") as file:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()  # the lock goes with its last open copy
