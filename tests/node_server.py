"""The server on Node that tests talk to."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest

from tests.support import SOON

NPM_TIMEOUT = 40  # seconds; a first `npm install` takes two where the registry answers


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    fcntl = pytest.importorskip("fcntl", reason="locks a file, which this system does otherwise")
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def ws_package(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The package `ws` of Node, installed once for all workers of a run."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is missing")
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "node"
    directory.mkdir(exist_ok=True)
    package, failed = directory / "node_modules" / "ws", directory / "failed"
    with locked(directory / "lock"):
        if not package.is_dir() and not failed.exists():
            problem = install(npm, directory)
            if problem is not None:
                failed.write_text(problem)
    if failed.exists():
        pytest.skip(f"npm install ws: {failed.read_text()}")
    return package


def install(npm: str, directory: Path) -> Optional[str]:
    """Install `ws`; say why it could not be."""
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", "ws@8"]
    try:
        done = subprocess.run(
            [*command, f"--prefix={directory}"],
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"not within {NPM_TIMEOUT} s"
    return None if done.returncode == 0 else done.stderr.strip()[-300:] or "failed"


@contextlib.contextmanager
def node_server(package: Path, deflate: Any = False) -> Iterator[str]:
    """Run the server; gives its URL. `deflate` is the option perMessageDeflate of `ws`."""
    process = subprocess.Popen(
        ["node", str(Path(__file__).parent / "node_echo.js"), str(package), json.dumps(deflate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port.isdigit(), "the server on Node did not start"
        yield f"ws://127.0.0.1:{port}/"
    finally:
        process.communicate(timeout=SOON)  # ends its input
