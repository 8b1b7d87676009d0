"""``python -m wsthread URL`` by pipe, its options, its exit statuses, and ``echo-server``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
import trustme

from tests.proxy_server import LOGIN, PASSWORD, USER, ProxyServer
from tests.support import (
    SOON,
    Certificates,
    Peer,
    RawConnection,
    RawServer,
    close_frame,
    echo_server,
    frame,
    opened,
    peer,
)
from wsthread import cli
from wsthread.testing import RecordingDelegate

COMMAND = [sys.executable, "-W", "error", "-m", "wsthread"]
ROOT = Path(__file__).resolve().parent.parent

Completed = subprocess.CompletedProcess  # of bytes


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


def run(*arguments: str, data: bytes = b"", env: Optional[Dict[str, str]] = None) -> Any:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        timeout=SOON * 3,
        env={**os.environ, **(env or {})},
    )


@contextlib.contextmanager
def started(*arguments: str, command: Optional[List[str]] = None, **options: Any) -> Iterator[Any]:
    """The command line, running; its standard streams are pipes."""
    for stream in ("stdin", "stdout", "stderr"):
        options.setdefault(stream, subprocess.PIPE)
    process = subprocess.Popen([*(command or COMMAND), *arguments], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def ended(process: Any) -> Any:
    """The status of a process that must end by itself, its input still open; and what it wrote."""
    status = process.wait(SOON)
    return status, process.stdout.read(), process.stderr.read()


def ready(process: Any, connection: RawConnection) -> None:
    """Wait until it takes lines: what interrupts it before may still interrupt the opening."""
    process.stdin.write(b"ready\n")
    process.stdin.flush()
    assert connection.read_frame() == (1, b"ready")


def close(server: Peer, connection: RawConnection, code: int = 1000, reason: str = "") -> None:
    """Close from the server's side, in order."""
    connection.sock.sendall(close_frame(code, reason))
    while connection.read_frame()[0] != 8:
        pass
    server.release()


def answered_close(server: Peer, connection: RawConnection) -> Any:
    """Wait for the client's close, answer it; return its code and reason."""
    answer = connection.answer_close()
    server.release()
    return answer


# Lines and messages.


def test_lines_go_out_and_messages_come_in(url: str) -> None:
    done = run("--linger", "0.3", url, data="a\r\nb\n\nGrüße\nno end".encode())
    assert done.stdout.decode() == "a\nb\n\nGrüße\nno end\n"
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_line_of_some_megabytes(url: str) -> None:
    line = os.urandom(1_500_000).hex().encode() + b"\n"
    done = run("-1", url, data=line)
    assert (done.returncode, done.stdout) == (0, line)


def test_a_line_goes_out_at_once_and_a_message_comes_out_at_once(url: str) -> None:
    with started(url) as process:
        for number in range(3):
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"%d\n" % number
        process.stdin.close()
        assert ended(process) == (0, b"", b"")


def test_binary_messages_come_out_as_they_are() -> None:
    with peer() as server, started(server.url) as process:
        connection = server.accept()
        connection.sock.sendall(frame(2, b"\x00\xff\n") + frame(2, b"\x80") + frame(1, b"x"))
        close(server, connection)
        assert ended(process) == (0, b"\x00\xff\n\x80x\n", b"")


def test_a_line_that_is_not_utf8_is_not_sent(url: str) -> None:
    done = run("--linger", "0.3", url, data=b"good\n\xff\xfe\nbetter\n")
    assert (done.returncode, done.stdout) == (5, b"good\nbetter\n")
    assert done.stderr == (
        b"wsthread: a line is not UTF-8, and was not sent\n"
        b"wsthread: not all of the input was sent\n"
    )


def test_what_was_not_sent_is_said() -> None:
    """A line that has begun when the connection breaks."""
    with peer(receive_buffer=65536) as server, started(server.url) as process:
        connection = server.accept()
        process.stdin.write(b"x" * 12_000_000 + b"\n")  # more than the kernel takes
        process.stdin.close()
        connection.sock.recv(1)
        connection.reset()
        status, output, errors = ended(process)
        assert (status, output) == (4, b"")
        assert errors.endswith(b"\nwsthread: not all of the input was sent\n")


def test_an_input_that_goes_on_when_the_server_has_closed(tmp_path: Path) -> None:
    """There is always a next line, whenever the server closes."""
    lines = tmp_path / "lines"
    lines.write_bytes(b"more\n" * 1_000_000)

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.read_frame()
        connection.sock.sendall(close_frame(1000))
        connection.read_to_end()

    with RawServer(script) as server, lines.open() as f, started(server.url, stdin=f) as process:
        assert ended(process) == (5, b"", b"wsthread: not all of the input was sent\n")


def test_silence_is_not_the_slowness_of_whom_it_writes_to(url: str) -> None:
    with started("--linger", "0.1", url) as process:
        process.stdin.write(b"push 40000\n")
        process.stdin.close()
        assert process.stdout.readline() == b"0\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)  # the pipe is full meanwhile
        status, output, errors = ended_after_reading(process)
        assert (status, errors) == (0, b"")
        assert [int(line) for line in output.splitlines()] == list(range(1, 40000))


def ended_after_reading(process: Any) -> Any:
    output = process.stdout.read()
    return process.wait(SOON), output, process.stderr.read()


def test_without_a_linger_it_waits_for_no_answer() -> None:
    with peer() as server, started("--linger", "0", server.url) as process:
        connection = server.accept()
        process.stdin.write(b"last words\n")
        process.stdin.close()
        assert connection.read_frame() == (1, b"last words")
        assert answered_close(server, connection) == (1000, b"")
        assert ended(process) == (0, b"", b"")


def test_with_an_endless_linger_it_goes_on() -> None:
    with peer() as server, started("--linger", "inf", server.url, stdin=subprocess.DEVNULL) as p:
        connection = server.accept()
        with pytest.raises(subprocess.TimeoutExpired):
            p.wait(1.5)  # more than it lingers by itself
        connection.sock.sendall(frame(1, b"late"))
        close(server, connection)
        assert ended(p) == (0, b"late\n", b"")


# Counting.


def test_one_message(url: str) -> None:
    done = run("-1", url, data=b"push 5\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")


def test_a_count_ends_though_the_input_does_not(url: str) -> None:
    with started("--count", "3", url) as process:
        process.stdin.write(b"push 5\n")
        process.stdin.flush()
        assert ended(process) == (0, b"0\n1\n2\n", b"")


def test_fewer_messages_than_asked_for() -> None:
    with peer() as server, started("--count", "3", server.url) as process:
        connection = server.accept()
        connection.sock.sendall(frame(1, b"a") + frame(1, b"b"))
        close(server, connection)
        assert ended(process) == (5, b"a\nb\n", b"wsthread: 2 of 3 messages came\n")


# JSON.


def events(output: bytes) -> List[Dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    for event in found:
        assert event.pop("time") > 1.6e9
    return found


def test_json() -> None:
    with peer() as server, started("--json", "--no-compression", server.url) as process:
        connection = server.accept()
        connection.sock.sendall(frame(1, "ä\n".encode()) + frame(2, b"\xff\x00"))
        close(server, connection, 4000, "reason")
        status, output, errors = ended(process)
    assert events(output) == [
        {"event": "state", "state": "connecting"},
        {"event": "state", "state": "connected"},
        {"event": "open", "subprotocol": None, "extensions": []},
        {"event": "message", "type": "text", "data": "ä\n"},
        {"event": "message", "type": "binary", "base64": "/wA="},
        {"event": "state", "state": "closing"},
        {"event": "error", "type": "ConnectionClosed", "error": "4000: reason"},
        {"event": "close", "code": 4000, "reason": "reason"},
        {"event": "state", "state": "disconnected"},
    ]
    assert (status, errors) == (3, b"wsthread: closed: 4000: reason\n")


def test_json_when_nothing_is_opened() -> None:
    done = run("--json", "ws://127.0.0.1:1/")
    assert done.returncode == 1
    assert [event["event"] for event in events(done.stdout)] == ["state", "state", "error"]
    assert events(done.stdout)[-1]["type"] == "ConnectError"


def test_json_of_a_connection_that_comes_back() -> None:
    with peer() as server, started("--json", "--reconnect", server.url) as process:
        server.accept().reset()
        server.release()
        close(server, server.accept())
        status, output, _ = ended(process)
    assert status == 0
    names = [event["event"] for event in events(output)]
    assert names.count("open") == names.count("close") == 2
    again = next(event for event in events(output) if event["event"] == "reconnect")
    assert again["attempt"] == 1 and 0 <= again["delay"] <= 1 and "broke" in again["error"]


# How it ends.


@pytest.mark.parametrize(
    "closing, status, said",
    [
        (close_frame(1000, "bye"), 0, b""),
        (frame(8), 0, b""),
        (close_frame(1001), 3, b"wsthread: closed: 1001 GOING_AWAY\n"),
        (close_frame(1011, "\x1b[2J"), 3, b"wsthread: closed: 1011 INTERNAL_ERROR: \\x1b[2J\n"),
        (frame(3), 4, None),  # an opcode that is none
        (frame(1, b"\xff"), 4, None),
        (frame(1, b"12345678901"), 4, None),  # more than --max-size
        (b"", 4, None),  # the end of the stream
    ],
    ids=["1000", "no code", "1001", "1011", "protocol", "UTF-8", "size", "lost"],
)
def test_the_status_says_how_it_closed(closing: bytes, status: int, said: Optional[bytes]) -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(closing)
        connection.sock.shutdown(socket.SHUT_WR)
        connection.read_to_end()

    with RawServer(script) as server, started("--max-size", "10", server.url) as process:
        found, output, errors = ended(process)
    assert (found, output) == (status, b"")
    if said is None:
        assert re.match(rb"wsthread: [^\n]+\nwsthread: closed: 1\d+ [A-Z_]+\n\Z", errors), errors
    else:
        assert errors == said


def test_the_status_where_nothing_is_opened() -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server:
        done = run(server.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"wsthread: ") and b"403" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_the_opening_has_a_time() -> None:
    with peer(upgrade=False) as server:
        done = run("--timeout", "0.3", server.url)
    assert done.returncode == 1
    assert b"in time" in done.stderr or b"0.3" in done.stderr


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_close_in_order(number: signal.Signals) -> None:
    with peer() as server, started(server.url) as process:
        connection = server.accept()
        ready(process, connection)
        process.send_signal(number)
        assert answered_close(server, connection) == (1000, b"")
        assert ended(process) == (128 + number, b"", b"")


def test_a_signal_while_it_connects() -> None:
    with peer(upgrade=False) as server, started(server.url) as process:
        server.accept()
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (128 + signal.SIGTERM, b"", b"")


def test_a_second_signal_ends_it_at_once() -> None:
    with peer() as server, started(server.url) as process:
        connection = server.accept()
        ready(process, connection)
        process.send_signal(signal.SIGINT)
        assert connection.read_frame()[0] == 8  # which nobody answers
        process.send_signal(signal.SIGINT)
        assert ended(process) == (-signal.SIGINT, b"", b"")


def test_a_signal_that_is_ignored_stays_so() -> None:
    ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *COMMAND]
    with peer() as server, started(server.url, command=ignoring) as process:
        connection = server.accept()
        ready(process, connection)
        process.send_signal(signal.SIGHUP)
        connection.sock.sendall(frame(1, b"still here"))
        assert process.stdout.readline() == b"still here\n"
        close(server, connection)
        assert ended(process) == (0, b"", b"")


def test_a_broken_pipe_is_quiet(url: str) -> None:
    with started(url) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"
        process.stdout.close()
        process.stdin.write(b"anybody?\n")
        process.stdin.flush()
        assert process.wait(SOON) == 141
        assert process.stderr.read() == b""


def test_nobody_reads_what_it_says(url: str) -> None:
    with started(url) as process:
        process.stderr.close()
        process.stdin.write(b"close 4000 x\n")
        process.stdin.flush()
        assert process.wait(SOON) == 3


# Standard streams that are not there.


def redirected(redirection: str) -> List[str]:
    return ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND]


def test_a_closed_input_has_ended() -> None:
    command = redirected("<&-")
    with peer() as server, started("--count", "2", server.url, command=command) as process:
        connection = server.accept()
        connection.sock.sendall(frame(1, b"one") + frame(1, b"two"))
        assert answered_close(server, connection) == (1000, b"")
        assert ended(process) == (0, b"one\ntwo\n", b"")


def test_a_closed_output_cannot_be_written(url: str) -> None:
    with started("-1", url, command=redirected(">&-")) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        status, _, errors = ended(process)
        assert (status, errors) == (5, b"wsthread: cannot write: Bad file descriptor\n")


def test_nothing_is_open(url: str) -> None:
    with started("--linger", "0", url, command=redirected("<&- >&- 2>&-")) as process:
        assert ended(process) == (0, b"", b"")


def test_an_input_that_cannot_be_read(url: str) -> None:
    done = subprocess.run(
        [*redirected("0>/dev/null"), "--linger", "0", url], capture_output=True, timeout=SOON * 3
    )
    assert done.returncode == 5
    assert done.stderr.startswith(b"wsthread: cannot read: Bad file descriptor\n")


# Options.


def head_for(*arguments: str, headers: bytes = b"") -> List[str]:
    """The lines of the request that these options make."""
    heads: List[bytes] = []

    def script(connection: RawConnection) -> None:
        heads.append(connection.upgrade(headers=headers))
        connection.answer_close()

    with RawServer(script) as server:
        done = run("--linger", "0", *arguments, server.url)
    assert (done.returncode, done.stderr) == (0, b"")
    return heads[0].decode().split("\r\n")


def test_options_of_the_request() -> None:
    head = head_for(
        *("-H", "X-One: 1", "--header", "X-Two:  a: b "),
        *("--subprotocol", "chat", "--subprotocol", "echo"),
        *("--origin", "https://example.org"),
        *("--auth", "user:pass:word"),
        "--no-compression",
        headers=b"Sec-WebSocket-Protocol: echo\r\n",
    )
    assert "X-One: 1" in head
    assert "X-Two: a: b" in head
    assert "Origin: https://example.org" in head
    assert "Authorization: Basic dXNlcjpwYXNzOndvcmQ=" in head
    offered = next(line for line in head if line.startswith("Sec-WebSocket-Protocol:"))
    assert re.fullmatch("Sec-WebSocket-Protocol: chat, ?echo", offered)
    assert not any("deflate" in line for line in head)


def test_a_request_without_options() -> None:
    head = head_for()
    assert any(line.startswith("Sec-WebSocket-Extensions: permessage-deflate") for line in head)
    names = {line.split(":")[0].lower() for line in head}
    assert not names & {"authorization", "origin", "sec-websocket-protocol"}


def test_the_subprotocol_is_told() -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade(close_frame(1000), b"Sec-WebSocket-Protocol: chat\r\n")
        connection.read_frame()

    with RawServer(script) as server:
        output = run("--json", "--subprotocol", "chat", server.url).stdout
    assert [event["subprotocol"] for event in events(output) if "subprotocol" in event] == ["chat"]


def test_the_interval_of_pings() -> None:
    with peer() as server, started("--ping-interval", "0.05", server.url) as process:
        connection = server.accept()
        assert connection.read_frame()[0] == 9
        close(server, connection)
        assert ended(process)[0] == 0


def test_a_lost_connection_comes_back_and_no_line_is_lost() -> None:
    with peer() as server, started("--reconnect", "--linger", "inf", server.url) as process:
        server.accept().reset()
        assert re.match(b"wsthread: the connection broke", process.stderr.readline())
        process.stdin.write(b"one\ntwo\n")
        process.stdin.close()
        server.release()
        connection = server.accept()
        assert connection.read_frame() == (1, b"one")
        assert connection.read_frame() == (1, b"two")
        close(server, connection)
        status, output, errors = ended(process)
        assert (status, output) == (0, b"")
        assert re.search(rb"^wsthread: attempt 1 to come back in \d\.\d s \(", errors, re.M)


def test_a_size_without_limit(url: str) -> None:
    line = b"x" * 20_000_000 + b"\n"  # more than the 16 MiB that are the default
    done = run("-1", "--max-size", "0", "--no-compression", url, data=line)
    assert (done.returncode, done.stdout == line, done.stderr) == (0, True, b"")


# TLS.


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


def test_certificates_are_verified(certificates: Certificates, tmp_path: Path) -> None:
    authority = certificates.write_authority(tmp_path)
    with echo_server(certificates.write(tmp_path)) as url:
        refused = run("-1", url, data=b"x\n")
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert b"certificate" in refused.stderr
        for option in (["--cacert", authority], ["--insecure"]):
            done = run("-1", *option, url, data=b"x\n")
            assert (done.returncode, done.stdout, done.stderr) == (0, b"x\n", b"")


def test_a_client_certificate(certificates: Certificates, tmp_path: Path) -> None:
    clients = trustme.CA()
    ours = clients.issue_cert("harriet@example.org")
    cert, key, both = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "both.pem"))
    ours.cert_chain_pems[0].write_to_path(cert)
    ours.private_key_pem.write_to_path(key)
    ours.private_key_and_cert_chain_pem.write_to_path(both)
    context = certificates.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    clients.configure_trust(context)

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"welcome"))
        connection.answer_close()

    with RawServer(script, context) as server:
        common = ["-1", "--cacert", certificates.write_authority(tmp_path)]
        for option in (["--cert", cert, "--key", key], ["--cert", both]):
            done = run(*common, *option, server.url)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"welcome\n", b"")
        assert run(*common, server.url).returncode == 1


# Proxies.


def test_a_proxy(url: str) -> None:
    address = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
    with ProxyServer("http", login=(USER, PASSWORD)) as proxy:
        done = run("-1", "--proxy", proxy.url(LOGIN), url, data=b"x\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"x\n", b"")
        refused = run("-1", "--proxy", proxy.url(), url, data=b"x\n")
        assert refused.returncode == 1 and b"407" in refused.stderr
        assert proxy.targets == [address]
    with ProxyServer("socks5") as proxy:
        done = run("-1", "--proxy", proxy.url(), url, data=b"x\n")
        assert (done.returncode, done.stdout, proxy.targets) == (0, b"x\n", [address])


def test_the_proxy_of_the_environment(url: str) -> None:
    with ProxyServer("http") as proxy:
        environment = {"ws_proxy": proxy.url()}
        assert run("-1", url, data=b"x\n", env=environment).stdout == b"x\n"
        assert len(proxy.targets) == 1
        assert run("-1", "--proxy", "none", url, data=b"x\n", env=environment).stdout == b"x\n"
        assert len(proxy.targets) == 1


# Wrong usage, and what surrounds it.


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["ftp://example.org"], "scheme"),
        (["ws://example.org:99999"], "port"),
        (["-H", "no colon", "ws://h"], "a header field is written"),
        (["-H", "a b: c", "ws://h"], "a b"),
        (["-H", "Upgrade: h2c", "ws://h"], "upgrade"),
        (["--subprotocol", "a b", "ws://h"], "token"),
        (["--origin", "a\nb", "ws://h"], "origin"),
        (["--auth", "user", "ws://h"], "no terminal"),
        (["--key", "k.pem", "ws://h"], "--key goes with --cert"),
        (["--cert", "/no/such/file", "ws://h"], "no such file"),
        (["--cacert", "/no/such/file", "ws://h"], "no such file"),
        (["--proxy", "gopher://h", "ws://h"], "proxy"),
        (["--ping-interval=-1", "ws://h"], "0 or more"),
        (["--timeout", "inf", "ws://h"], "0 or more"),
        (["--linger", "nan", "ws://h"], "or inf"),
        (["--max-size", "1T", "ws://h"], "64k"),
        (["--count", "0", "ws://h"], "1 or more"),
        (["-1", "--count", "2", "ws://h"], "not allowed with"),
        (["--rec", "ws://h"], "unrecognized"),
        (["ws://h", "ws://h"], "unrecognized"),
        (["echo-server", "--port", "65536"], "65535"),
        (["echo-server", "ws://h"], "unrecognized"),
    ],
)
def test_wrong_usage(
    arguments: List[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m wsthread")
    assert said in err.lower()


def test_no_secret_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ws://u:secret@h:x/"], ["--proxy", "http://u:secret@h:x", "ws://h"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "secret" not in capsys.readouterr().err


def test_the_console_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = re.search(
        r"^console_scripts =\n    wsthread = (\S+)$", (ROOT / "setup.cfg").read_text(), re.M
    )
    assert declared is not None
    entry = importlib.metadata.EntryPoint("wsthread", declared.group(1), "console_scripts")
    assert entry.load() is cli.main
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/wsthread", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/wsthread"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("usage: wsthread [options] URL\n")


def test_the_page_names_every_option_and_status() -> None:
    page = (ROOT / "docs" / "commandline.rst").read_text(encoding="utf-8")
    parsers = [cli._client_parser()]
    options = {name for parser in parsers for name in parser._option_string_actions}
    missing = {name for name in options if f"``{name}" not in page}
    assert missing == set()
    from wsthread import command  # noqa: PLC0415

    statuses = [command.OK, command.NOT_OPENED, command.USAGE, command.CLOSED, command.LOST]
    for status in [*statuses, command.INCOMPLETE, command.BROKEN_PIPE, cli.INTERRUPTED, 143]:
        assert re.search(rf"^   [* ] - {status}$", page, re.M), status


def test_the_library_imports_nothing_of_it() -> None:
    script = (
        "import sys, wsthread; of_it = {'argparse', 'asyncio', 'prompt_toolkit', 'tqdm', "
        "'wsthread.cli', 'wsthread.command', 'wsthread.pipe', 'wsthread.interactive', "
        "'wsthread.echo'}; print(sorted(of_it & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SOON * 3
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# The echo server.


@contextlib.contextmanager
def echo_command(*arguments: str) -> Iterator[Any]:
    with started("echo-server", *arguments) as process:
        line = process.stdout.readline().decode()
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/\n", line), process.stderr.read()
        process.url = line.strip()
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_echo_server(number: signal.Signals) -> None:
    with echo_command() as process:
        recorder = RecordingDelegate()
        with opened(process.url, recorder) as client:
            client.send("text")
            client.send(b"binary")
            recorder.wait_for("message", count=2)
            assert recorder.messages() == ["text", b"binary"]
            process.send_signal(number)
            assert recorder.wait_for("close")[1] == 1001
        assert ended(process) == (0, b"", b"")


def test_the_echo_server_has_the_port_it_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("echo-server", "--port", str(port))
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.startswith(b"wsthread: cannot listen on port %d of 127.0.0.1: " % port)
    with echo_command("--port", str(port), "--host", "127.0.0.1") as process:
        assert process.url == f"ws://127.0.0.1:{port}/"
        done = run("-1", process.url, data=b"x\n")
        assert (done.returncode, done.stdout) == (0, b"x\n")


def test_the_echo_server_ends_though_a_client_takes_nothing() -> None:
    with echo_command() as process:
        port = int(process.url.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(
                b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
            # Text with a masking key of zeros, until it can send back no more.
            message = b"\x81\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + b"x" * (1 << 20)
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError, socket.timeout):
                for _ in range(64):
                    sock.sendall(message)
            process.send_signal(signal.SIGTERM)
            assert ended(process) == (0, b"", b"")


def test_the_echo_server_without_its_package() -> None:
    script = (
        "import sys; sys.modules['websockets'] = None; "
        "from wsthread.cli import main; sys.exit(main(['echo-server']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=SOON * 3)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"pip install 'wsthread[demo]'" in done.stderr


def test_nothing_of_it_lives_on(url: str) -> None:
    """In one process: the threads that read an input, and those of a client, are gone."""
    before = threading.active_count()
    read, write = os.pipe()
    os.close(write)
    script = (
        "import sys, threading\nfrom wsthread.cli import main\n"
        f"status = main(['--linger', '0', {url!r}])\n"
        "[thread.join(10) for thread in threading.enumerate()[1:]]\n"
        "print(status, threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=read, capture_output=True, timeout=SOON * 3
    )
    os.close(read)
    assert (done.stdout, done.stderr) == (b"0 1\n", b"")
    assert threading.active_count() == before
