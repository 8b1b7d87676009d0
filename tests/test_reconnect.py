"""Promises 10 and 19: lost connections come back, by a policy, and keep what waits."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import socket
import ssl
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

import wsthread
from tests.lasting import SteadyServer, echo, eventually
from tests.support import SOON, RawConnection, close_frame, frame
from wsthread import ConnectionState, QueueLimit, Reconnect
from wsthread.errors import ConnectError, ConnectTimeout, HandshakeError, ProxyError
from wsthread.reconnect import Backoff, retried, retry_after
from wsthread.testing import RecordingDelegate

#: For tests that want to be back at once.
SOON_BACK = Reconnect(delay=0.02, max_delay=0.02)


class Ceiling(random.Random):
    """The longest delay that the policy allows, always."""

    def uniform(self, a: float, b: float) -> float:
        return b


# The policy, with plain values.


def test_promise_19_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(Reconnect(delay=0.5, max_delay=5, rng=Ceiling()))
    assert [backoff.next_delay(None) for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert backoff.attempt == 6


def test_promise_19_full_jitter_is_spread_evenly_from_zero_to_the_ceiling() -> None:
    delays = []
    for seed in range(2000):
        backoff = Backoff(Reconnect(delay=4, rng=random.Random(seed)))
        delays.append(backoff.next_delay(None) or 0.0)
    for low in range(4):
        assert 400 < sum(low <= delay < low + 1 for delay in delays) < 600


def test_backing_off_for_years_overflows_nothing() -> None:
    backoff = Backoff(Reconnect(delay=1, max_delay=60, rng=Ceiling()))
    backoff.attempt = 100_000
    assert backoff.next_delay(None) == 60


def test_promise_19_the_count_starts_again_after_min_uptime() -> None:
    backoff = Backoff(Reconnect(delay=1, min_uptime=5, rng=Ceiling()))
    assert [backoff.next_delay(None) for _ in range(3)] == [1, 2, 4]
    backoff.lasted(4.99)
    assert backoff.next_delay(None) == 8
    backoff.lasted(5)
    assert backoff.next_delay(None) == 1


def test_promise_19_attempts_in_a_row_are_bounded() -> None:
    backoff = Backoff(Reconnect(attempts=2, min_uptime=1))
    assert backoff.next_delay(None) is not None
    assert backoff.next_delay(None) is not None
    assert backoff.next_delay(None) is None
    backoff.lasted(1)
    assert backoff.next_delay(None) is not None
    assert Backoff(Reconnect(attempts=0)).next_delay(None) is None


def test_promise_19_retry_after_is_waited_for_with_jitter_and_capped() -> None:
    backoff = Backoff(Reconnect(delay=1, max_retry_after=30, rng=Ceiling()))
    assert backoff.next_delay(10) == 11
    assert backoff.next_delay(31) == 32
    assert backoff.next_delay(0) == 4


def refused(status: Optional[int], *fields: Tuple[str, str]) -> HandshakeError:
    return HandshakeError("refused", status, fields)


def caused(error: ConnectError, cause: BaseException) -> ConnectError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1012, 1013, 1014])
def test_promise_19_close_codes_that_are_retried(code: int) -> None:
    assert retried(None, code)


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 4000, 4999])
def test_promise_19_close_codes_that_are_final(code: int) -> None:
    assert not retried(wsthread.ConnectionClosed("", code), code)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *[(refused(status), True) for status in (408, 429, 500, 502, 503, 504, 599)],
        *[(refused(status), False) for status in (101, 200, 301, 400, 401, 403, 404, 426)],
        (refused(None), True),
        (ConnectError("no route"), True),
        (ConnectTimeout("too slow"), True),
        (ProxyError("refused", 407), False),
        (ProxyError("refused", 502), True),
        (ProxyError("refused"), True),
        (caused(ConnectError(""), ConnectionRefusedError()), True),
        (caused(ConnectError(""), ssl.SSLError("handshake")), True),
        (caused(ConnectError(""), ssl.SSLCertVerificationError("expired")), False),
        (caused(ConnectError(""), ValueError("a bad URL")), False),
        (RuntimeError("no ConnectError"), False),
        (None, False),
    ],
    ids=str,
)
def test_promise_19_failed_attempts_that_are_retried(
    error: Optional[BaseException], expected: bool
) -> None:
    assert retried(error, None) is expected


NOW = datetime(2024, 5, 1, 12, 0, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1" * 400, 111_111_111.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        ("Wed, 01 May 2024 12:00:30 -0000", 30.0),  # which the parser gives no zone
        (format_datetime(NOW - timedelta(days=1)), 0.0),
        ("soon", None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("\u00b2", None),
        ("Wed, 01 May 99999 12:00:00 GMT", None),
        ("Wed, 01 May 2024 99999999999999:00:00 GMT", None),
        ("Wed, 01 May 2024 12:00:00 +99999999999999999999", None),
    ],
)
def test_promise_19_retry_after_in_seconds_and_dates(value: str, expected: Optional[float]) -> None:
    error = refused(503, ("Date", "x"), ("RETRY-AFTER", value), ("Retry-After", "9"))
    assert retry_after(error, NOW) == expected


def test_no_retry_after_where_there_is_none() -> None:
    assert retry_after(refused(503, ("Date", "x")), NOW) is None
    assert retry_after(ConnectError("no route"), NOW) is None
    assert retry_after(None, NOW) is None


DATES = st.lists(
    st.sampled_from(
        [*["Mon,", "Jan", "2024", "00:00:00", "GMT", "EST", "-0000"], *"+-:,.()9", "9" * 12]
    ),
    max_size=12,
)


@given(st.one_of(st.text(max_size=40), DATES.map("".join), DATES.map(" ".join)))
@example("Jan Mon, , Mon,")  # IndexError in Python 3.9's parser
def test_promise_14_whatever_stands_in_retry_after_is_no_error(value: str) -> None:
    seconds = retry_after(refused(503, ("Retry-After", value)), NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("name", ["delay", "max_delay", "min_uptime", "max_retry_after"])
def test_a_policy_checks_its_seconds(name: str) -> None:
    assert getattr(Reconnect(**{name: 0}), name) == 0
    for wrong in ("1", None, True):
        with pytest.raises(TypeError, match=name):
            Reconnect(**{name: wrong})  # type: ignore[arg-type]
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=name):
            Reconnect(**{name: wrong})


def test_a_policy_checks_its_attempts() -> None:
    with pytest.raises(ValueError, match="attempts"):
        Reconnect(attempts=-1)


def _first_delay(policy: Reconnect, pipe: Any) -> None:
    pipe.send(Backoff(policy).next_delay(None))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_promise_19_forked_children_do_not_draw_the_same_delays() -> None:
    """A pre-fork server's workers would all come back at once."""
    context, policy = multiprocessing.get_context("fork"), Reconnect(delay=60)
    delays = []
    for _ in range(3):
        ours, theirs = context.Pipe()
        child = context.Process(target=_first_delay, args=(policy, theirs))
        child.start()
        theirs.close()
        assert ours.poll(SOON)
        delays.append(ours.recv())
        ours.close()
        child.join(SOON)
        child.close()
    assert len(set(delays)) == 3


# Against servers.


class Clients:
    """Makes clients that are gone at the end of a test."""

    def __init__(self) -> None:
        self.made: List[wsthread.WebSocketClient] = []

    def __call__(self, url: Any, delegate: Any = None, **options: Any) -> wsthread.WebSocketClient:
        options.setdefault("reconnect", SOON_BACK)
        client = wsthread.WebSocketClient(url, delegate, **options)
        self.made.append(client)
        return client


@pytest.fixture
def make() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    for client in clients.made:
        client.abort()


@pytest.fixture
def server() -> Iterator[SteadyServer]:
    with SteadyServer() as steady:
        yield steady


def scripts(*each: Callable[[RawConnection], None]) -> Callable[[RawConnection], None]:
    """The n-th connection runs the n-th script, those after the last one the last."""
    numbers = itertools.count()

    def script(connection: RawConnection) -> None:
        each[min(next(numbers), len(each) - 1)](connection)

    return script


def opened(connection: RawConnection) -> None:
    connection.upgrade()
    connection.sock.settimeout(None)
    echo(connection)


def closing(code: Optional[int], reason: str = "") -> Callable[[RawConnection], None]:
    """Opens, and closes with a code (None: without one)."""

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(8) if code is None else close_frame(code, reason))
        while connection.read_frame()[0] != 8:
            pass

    return script


def drops(connection: RawConnection) -> None:
    """Opens, reads one message, and resets."""
    connection.upgrade()
    connection.read_frame()
    connection.reset()


def answers(status: str, *fields: str) -> Callable[[RawConnection], None]:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        head = "\r\n".join([f"HTTP/1.1 {status}", *fields, "Content-Length: 0", "", ""])
        connection.sock.sendall(head.encode())

    return script


def test_promise_19_a_server_killed_and_restarted(make: Clients, server: SteadyServer) -> None:
    recorder = RecordingDelegate()
    client = make(server.url, recorder)
    client.connect()
    recorder.wait_for("open")
    server.stop()
    recorder.wait_for("reconnect", count=3)
    assert client.state is ConnectionState.RECONNECTING
    server.start()
    recorder.wait_for("open", count=2)
    client.send("I am back")
    assert recorder.wait_for("message") == ("message", "I am back")
    assert client.disconnect()
    names = [name for name in recorder.names() if name != "sent"]
    again = names.count("reconnect")
    assert names == [
        *["state", "state", "open"],
        *["error", "close", "state"],
        *["reconnect"] * again,
        *["state", "open", "message"],
        *["state", "close", "state"],
    ]
    states = ["CONNECTING", "CONNECTED", "RECONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]
    assert recorder.states() == states
    attempts = recorder.of("reconnect")
    assert [event[1] for event in attempts] == list(range(1, again + 1))
    assert all(0 <= event[2] <= 0.02 for event in attempts)
    causes = [event[3] for event in attempts]
    assert isinstance(causes[0], wsthread.ConnectionClosed) and causes[0].code == 1006
    assert all(isinstance(cause, wsthread.ConnectError) for cause in causes[1:])
    assert isinstance(causes[1].__cause__, ConnectionRefusedError)
    stats = client.stats
    assert (stats.connections, stats.failed_attempts) == (2, again - 1)


def test_promise_19_a_reset_is_told_and_retried(make: Clients, server: SteadyServer) -> None:
    recorder = RecordingDelegate()
    client = make(server.url, recorder)
    client.connect()
    recorder.wait_for("open")
    server.cut()
    recorder.wait_for("open", count=2)
    [(_, error)] = recorder.of("error")
    assert isinstance(error.__cause__, ConnectionResetError)
    assert recorder.of("close") == [("close", 1006, "")]


@pytest.mark.parametrize("code", [None, 1001, 1011, 1012, 1013, 1014])
def test_promise_19_a_close_that_is_retried(make: Clients, code: Optional[int]) -> None:
    reason = "" if code is None else "later"
    recorder = RecordingDelegate()
    with SteadyServer(scripts(closing(code, reason), opened)) as server:
        client = make(server.url, recorder)
        client.connect()
        recorder.wait_for("open", count=2)
        assert client.disconnect()
    assert recorder.of("close")[0] == ("close", code or 1005, reason)
    states = ["CONNECTING", "CONNECTED", "CLOSING", "RECONNECTING", "CONNECTED"]
    assert recorder.states()[:5] == states


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 4321])
def test_promise_19_a_close_that_is_final(make: Clients, code: int) -> None:
    recorder = RecordingDelegate()
    with SteadyServer(closing(code, "for good")) as server:
        client = make(server.url, recorder)
        client.connect()
        assert client.wait(SOON)
        assert len(server.accepted) == 1
    assert recorder.of("close") == [("close", code, "for good")]
    assert recorder.states()[-2:] == ["CLOSING", "DISCONNECTED"]
    errors = recorder.of("error")
    assert len(errors) == (0 if code == 1000 else 1)
    assert client.error is (errors[0][1] if errors else None)


@pytest.mark.parametrize("status", ["408 Timeout", "429 Slow Down", "500 Oops", "503 Busy"])
def test_promise_19_an_http_answer_that_is_retried(make: Clients, status: str) -> None:
    recorder = RecordingDelegate()
    with SteadyServer(scripts(drops, answers(status), opened)) as server:
        client = make(server.url, recorder)
        client.connect()
        client.send("lose me")
        recorder.wait_for("open", count=2)
        assert client.disconnect()
    assert recorder.of("reconnect")[1][3].status == int(status[:3])


@pytest.mark.parametrize("status", ["400 Bad", "401 Who", "403 No", "404 Where", "200 OK"])
def test_promise_19_an_http_answer_that_is_final(make: Clients, status: str) -> None:
    recorder = RecordingDelegate()
    with SteadyServer(scripts(drops, answers(status), opened)) as server:
        client = make(server.url, recorder)
        client.connect()
        client.send("lose me")
        assert client.wait(SOON)
        assert len(server.accepted) == 2
    error = recorder.of("error")[-1][1]
    assert isinstance(error, wsthread.HandshakeError) and error.status == int(status[:3])
    assert client.error is error
    assert recorder.names()[-2:] == ["error", "state"]
    assert recorder.states()[-2:] == ["RECONNECTING", "DISCONNECTED"]


@pytest.mark.parametrize("policy", [{}, {"max_retry_after": 0.3}], ids=["whole", "capped"])
def test_promise_19_retry_after_is_honoured(make: Clients, policy: Dict[str, Any]) -> None:
    busy = answers("503 Busy", f"Retry-After: {86400 if policy else 1}")
    recorder = RecordingDelegate()
    with SteadyServer(scripts(drops, busy, opened)) as server:
        client = make(server.url, recorder, reconnect=Reconnect(delay=0.01, **policy))
        client.connect()
        client.send("lose me")
        recorder.wait_for("open", count=2)
        waited = server.accepted[2] - server.accepted[1]
        assert client.disconnect()
    least = policy.get("max_retry_after", 1.0)
    assert least <= recorder.of("reconnect")[1][2] <= least + 0.02
    assert least - 0.01 <= waited < least + 2


def certificate(authority: trustme.CA, **how: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", **how).configure_cert(context)
    return context


def over_tls(
    context: ssl.SSLContext, script: Callable[[RawConnection], None]
) -> Callable[[RawConnection], None]:
    def run(connection: RawConnection) -> None:
        connection.sock = context.wrap_socket(connection.sock, server_side=True)
        script(connection)

    return run


def test_promise_19_an_expired_certificate_is_final(make: Clients) -> None:
    authority, trusting = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusting)
    good = certificate(authority)
    expired = certificate(authority, not_after=datetime.now(timezone.utc) - timedelta(days=1))
    recorder = RecordingDelegate()
    with SteadyServer(scripts(over_tls(good, drops), over_tls(expired, opened))) as server:
        url = f"wss://127.0.0.1:{server.port}/"
        client = make(url, recorder, ssl_context=trusting)
        client.connect()
        client.send("lose me")
        assert client.wait(SOON)
        assert len(server.accepted) == 2
        error = recorder.of("error")[-1][1]
        assert isinstance(error, wsthread.ConnectError) and "expired" in str(error)
        patient = make(url, ssl_context=trusting, reconnect=Reconnect(first=True))
        with pytest.raises(wsthread.ConnectError, match="expired"):
            patient.connect()
        assert len(server.accepted) == 3


def test_promise_19_names_that_do_not_resolve_for_a_while(
    make: Clients, server: SteadyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = socket.getaddrinfo, [0]

    def failing(host: Any, *args: Any, **options: Any) -> Any:
        if host != "feed.test":
            return real(host, *args, **options)
        if options.get("flags") == socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "it is a name")
        if down.is_set():
            failures[0] += 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    down, recorder = threading.Event(), RecordingDelegate()
    client = make(f"ws://feed.test:{server.port}/", recorder)
    client.connect()
    down.set()
    server.cut()
    recorder.wait_for("reconnect", count=4)
    down.clear()
    recorder.wait_for("open", count=2)
    cause = recorder.of("reconnect")[1][3]
    assert isinstance(cause.__cause__, socket.gaierror) and "cannot resolve" in str(cause)
    assert failures[0] >= 3


def test_promise_19_a_server_that_accepts_and_closes_at_once_makes_no_hot_loop(
    make: Clients,
) -> None:
    def closes(connection: RawConnection) -> None:
        connection.upgrade()

    recorder = RecordingDelegate()
    policy = Reconnect(delay=0.05, max_delay=10, rng=Ceiling())
    with SteadyServer(closes) as server:
        client = make(server.url, recorder, reconnect=policy)
        client.connect()
        recorder.wait_for("reconnect", count=5)
        assert client.disconnect()
        gaps = [after - before for before, after in zip(server.accepted, server.accepted[1:])]
    attempts = [(event[1], event[2]) for event in recorder.of("reconnect")]
    assert attempts[:5] == [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.4), (5, 0.8)]
    assert all(gap >= delay - 0.01 for gap, (_, delay) in zip(gaps, attempts))


def test_promise_19_a_connection_that_lasted_starts_the_count_again(
    make: Clients, server: SteadyServer
) -> None:
    recorder = RecordingDelegate()
    policy = Reconnect(delay=0.01, max_delay=10, min_uptime=0.2, rng=Ceiling())
    client = make(server.url, recorder, reconnect=policy)
    client.connect()
    for number in range(1, 4):
        recorder.wait_for("open", count=number)
        if number == 3:
            assert not client.wait(0.3)  # it lasts
        server.cut()
        recorder.wait_for("reconnect", count=number)
    assert [event[1:3] for event in recorder.of("reconnect")] == [(1, 0.01), (2, 0.02), (1, 0.01)]


def test_promise_19_attempts_that_are_used_up_end_the_life(
    make: Clients, server: SteadyServer
) -> None:
    recorder = RecordingDelegate()
    client = make(server.url, recorder, reconnect=Reconnect(delay=0.01, attempts=3))
    client.connect()
    recorder.wait_for("open")
    server.stop()
    assert client.wait(SOON)
    assert [event[1] for event in recorder.of("reconnect")] == [1, 2, 3]
    lost, last = (event[1] for event in recorder.of("error"))
    assert isinstance(lost, wsthread.ConnectionClosed)
    assert isinstance(last, wsthread.ConnectError) and client.error is last
    assert recorder.states()[-2:] == ["RECONNECTING", "DISCONNECTED"]
    with pytest.raises(wsthread.NotConnected):
        client.send("too late")


def test_promise_19_url_and_headers_are_called_before_every_attempt(make: Clients) -> None:
    tokens = itertools.count(1)
    heads: List[Tuple[bytes, bytes]] = []

    def script(connection: RawConnection) -> None:
        head = connection.upgrade()
        line, *fields = head.split(b"\r\n")
        [token] = [field for field in fields if field.lower().startswith(b"x-token")]
        heads.append((line.split()[1], token.split(b": ")[1]))
        echo(connection)

    recorder = RecordingDelegate()
    with SteadyServer(script) as server:
        client = make(
            lambda: f"{server.url}?try={len(heads) + 1}",
            recorder,
            headers=lambda: {"X-Token": str(next(tokens))},
        )
        client.connect()
        for number in (1, 2):
            recorder.wait_for("open", count=number)
            server.cut()
        recorder.wait_for("open", count=3)
        assert client.disconnect()
    assert heads == [(b"/?try=%d" % n, b"%d" % n) for n in (1, 2, 3)]


@pytest.mark.parametrize("error", [OSError("no token"), ValueError("no JSON"), KeyError("token")])
def test_promise_19_a_callable_that_raises_is_a_failed_attempt(
    make: Clients, server: SteadyServer, error: Exception
) -> None:
    """Whatever it asks for a token may be down for a while."""
    calls = itertools.count(1)

    def headers() -> Dict[str, str]:
        if next(calls) in (2, 3):
            raise error
        return {}

    recorder = RecordingDelegate()
    client = make(server.url, recorder, headers=headers)
    client.connect()
    recorder.wait_for("open")
    server.cut()
    recorder.wait_for("open", count=2)
    causes = [event[3] for event in recorder.of("reconnect")]
    assert len(causes) == 3
    assert all(isinstance(cause, wsthread.ConnectError) for cause in causes[1:])
    assert type(error).__name__ in str(causes[1])
    assert causes[1].__cause__ is error


@pytest.mark.parametrize("wrong", ["ftp://127.0.0.1/", "ws://", "ws://127.0.0.1:99999/"])
def test_promise_19_a_bad_url_is_final(make: Clients, server: SteadyServer, wrong: str) -> None:
    urls = iter([server.url, wrong, server.url])
    recorder = RecordingDelegate()
    client = make(lambda: next(urls), recorder)
    client.connect()
    recorder.wait_for("open")
    server.cut()
    assert client.wait(SOON)
    assert isinstance(recorder.of("error")[-1][1], wsthread.ConnectError)
    assert next(urls) == server.url, "it was not tried again"


# What decides instead.


class Asked:
    """A should_retry that notes what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self._answers = iter(answers)
        self.calls: List[Tuple[Optional[BaseException], Optional[int]]] = []

    def __call__(self, error: Optional[BaseException], code: Optional[int]) -> Any:
        self.calls.append((error, code))
        answer = next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def test_promise_19_should_retry_decides_otherwise(make: Clients) -> None:
    ask = Asked(True)
    recorder = RecordingDelegate()
    with SteadyServer(scripts(closing(1000), opened)) as server:
        policy = Reconnect(delay=0.01, should_retry=ask)
        client = make(server.url, recorder, reconnect=policy)
        client.connect()
        recorder.wait_for("open", count=2)
        assert client.disconnect()
    assert ask.calls == [(None, 1000)]
    refusing = Asked(False)
    with SteadyServer(scripts(closing(1012), opened)) as server:
        client = make(server.url, reconnect=Reconnect(delay=0.01, should_retry=refusing))
        client.connect()
        assert client.wait(SOON)
    [(error, code)] = refusing.calls
    assert isinstance(error, wsthread.ConnectionClosed) and error.code == code == 1012


def test_should_retry_of_a_failed_attempt_has_no_code(make: Clients, server: SteadyServer) -> None:
    ask = Asked(None, None, False)
    client = make(server.url, reconnect=Reconnect(delay=0.01, should_retry=ask))
    client.connect()
    server.stop()
    assert client.wait(SOON)
    assert [code for _, code in ask.calls] == [1006, None, None]
    assert isinstance(ask.calls[1][0], wsthread.ConnectError)


@pytest.mark.parametrize("raised", [RuntimeError("a bug"), SystemExit(3), KeyboardInterrupt()])
def test_should_retry_that_raises_leaves_it_to_the_rules(
    make: Clients, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    for code, back in ((1012, True), (1008, False)):
        recorder, ask = RecordingDelegate(), Asked(raised)
        with SteadyServer(scripts(closing(code), opened)) as server:
            policy = Reconnect(delay=0.01, should_retry=ask)
            client = make(server.url, recorder, reconnect=policy)
            client.connect()
            if back:
                recorder.wait_for("open", count=2)
                assert client.disconnect()
            assert client.wait(SOON)
            assert len(server.accepted) == (2 if back else 1)
    assert "should_retry raised" in caplog.text


def test_should_retry_that_hangs_leaves_it_to_the_rules(
    make: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    recorder = RecordingDelegate()
    with SteadyServer(scripts(closing(1012), opened)) as server:
        policy = Reconnect(delay=0.01, should_retry=Asked(release.wait))
        client = make(server.url, recorder, reconnect=policy, connect_timeout=0.3)
        client.connect()
        recorder.wait_for("open", count=2)
        release.set()
        assert client.disconnect()
    assert "should_retry" in caplog.text


def test_promise_02_disconnect_while_should_retry_hangs(make: Clients) -> None:
    asked, release = threading.Event(), threading.Event()

    def hang(error: Any, code: Any) -> bool:
        asked.set()
        return release.wait(SOON)

    with SteadyServer(scripts(closing(1012), opened)) as server:
        client = make(server.url, reconnect=Reconnect(should_retry=hang))
        client.connect()
        assert asked.wait(SOON)
        started = time.monotonic()
        assert client.disconnect()
        assert time.monotonic() - started < 1
        release.set()


# The first connection.


def test_promise_19_the_first_connection_is_tried_once(make: Clients, server: SteadyServer) -> None:
    server.stop()
    recorder = RecordingDelegate()
    client = make(server.url, recorder)
    with pytest.raises(wsthread.ConnectError):
        client.connect()
    assert recorder.of("reconnect") == []
    assert recorder.states() == ["CONNECTING", "DISCONNECTED"]


def test_promise_19_first_retries_the_first_connection_too(
    make: Clients, server: SteadyServer
) -> None:
    server.stop()
    recorder = RecordingDelegate()
    client = make(server.url, recorder, reconnect=Reconnect(first=True, delay=0.02, max_delay=0.02))
    client.connect(wait=False)
    client.send("as soon as you can")
    recorder.wait_for("reconnect", count=3)
    assert client.state is ConnectionState.CONNECTING
    server.start()
    client.connect()  # joins the wait
    assert recorder.wait_for("message") == ("message", "as soon as you can")
    assert recorder.states()[:2] == ["CONNECTING", "CONNECTED"]


def test_promise_15_a_timeout_of_connect_bounds_all_its_attempts(
    make: Clients, server: SteadyServer
) -> None:
    server.stop()
    recorder = RecordingDelegate()
    client = make(server.url, recorder, reconnect=Reconnect(first=True, delay=0.05, max_delay=0.05))
    started = time.monotonic()
    with pytest.raises(wsthread.ConnectError):
        client.connect(timeout=0.5)
    assert 0.3 < time.monotonic() - started < 2
    assert len(recorder.of("reconnect")) >= 5
    assert client.state is ConnectionState.DISCONNECTED


# What waits, and how the wait ends.


class Subscribes(RecordingDelegate):
    def on_open(self, client: Any) -> None:
        super().on_open(client)
        client.send("log in")
        client.send("subscribe")


def test_promise_10_what_was_sent_in_between_goes_behind_on_open(
    make: Clients, server: SteadyServer
) -> None:
    recorder = Subscribes()
    client = make(server.url, recorder, send_queue=QueueLimit(messages=3))
    client.connect()
    recorder.wait_for("message", count=2)
    server.stop()
    recorder.wait_for("reconnect")
    for number in range(3):
        client.send(f"message {number}")
    assert client.pending == 3
    with pytest.raises(wsthread.QueueFull):
        client.send("one too many")
    server.start()
    again = ["log in", "subscribe", "message 0", "message 1", "message 2"]
    recorder.wait_for("message", count=7)
    assert recorder.messages()[2:] == again
    assert client.disconnect()
    assert [event[1] for event in recorder.of("sent")][2:] == again
    assert recorder.of("unsent") == []


@pytest.mark.parametrize("how", ["disconnect", "abort"])
def test_promise_02_the_end_comes_at_once_during_back_off(
    make: Clients, server: SteadyServer, how: str
) -> None:
    recorder = RecordingDelegate()
    client = make(server.url, recorder, reconnect=Reconnect(delay=1000, rng=Ceiling()))
    client.connect()
    recorder.wait_for("open")
    server.cut()
    recorder.wait_for("reconnect")
    client.send("it never goes out")
    started = time.monotonic()
    assert client.disconnect() if how == "disconnect" else client.abort() is None
    assert time.monotonic() - started < 0.5
    assert client.state is ConnectionState.DISCONNECTED
    [(_, message, error)] = recorder.of("unsent")
    assert message == "it never goes out" and isinstance(error, wsthread.NotConnected)
    assert len(server.accepted) == 1


class Herd(wsthread.WebSocketDelegate):
    """Notes for each client for how long it was to wait when it was lost, and when it was back."""

    def __init__(self) -> None:
        self.open = 0
        self.lost: Dict[int, float] = {}
        self.back: Dict[int, float] = {}

    def on_open(self, client: Any) -> None:
        if id(client) in self.lost:
            self.back[id(client)] = time.monotonic()
        self.open += 1

    def on_reconnect(self, client: Any, attempt: int, delay: float, error: Any) -> None:
        self.lost.setdefault(id(client), delay)


def test_promise_19_two_hundred_clients_do_not_come_back_at_the_same_time(
    server: SteadyServer,
) -> None:
    count, herd, dispatcher = 200, Herd(), wsthread.ThreadDispatcher()
    clients = [
        wsthread.WebSocketClient(
            server.url,
            herd,
            dispatcher=dispatcher,
            compression=None,
            connect_timeout=SOON * 3,
            reconnect=Reconnect(delay=1, rng=random.Random(seed)),
        )
        for seed in range(count)
    ]
    try:
        for client in clients:
            client.connect(wait=False)
        eventually(lambda: herd.open == count, SOON * 3)
        cut_at = time.monotonic()
        server.cut()
        eventually(lambda: len(herd.back) == count, SOON * 3)
    finally:
        for client in clients:
            client.disconnect(wait=False)
        for client in clients:
            assert client.wait(SOON)
        dispatcher.close()
    delays = sorted(herd.lost.values())
    assert len(delays) == count
    crowd = max(sum(low <= one < low + 0.1 for one in delays) for low in delays)
    assert crowd <= count * 0.2, "in no 100 ms more than twice their share"
    assert delays[0] < 0.1 and delays[-1] > 0.9
    for client, delay in herd.lost.items():
        assert herd.back[client] - cut_at >= delay, "nobody comes before its time"
