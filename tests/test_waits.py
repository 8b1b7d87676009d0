"""What threads wait for."""

from __future__ import annotations

import threading
import time
from typing import Optional

import pytest

from wsthread.waits import Flag, hang, listen, ring, wait_event

from .support import SOON, Background, eventually


def waiting(flag: Flag, count: int) -> None:
    eventually(lambda: len(flag._bells) == count)


def test_a_flag_wakes_everybody_who_waits() -> None:
    flag = Flag()
    waiters = [Background(flag.wait, SOON) for _ in range(5)]
    waiting(flag, 5)
    assert not flag.is_set()
    flag.set()
    assert [waiter.result(SOON) for waiter in waiters] == [True] * 5
    assert flag.is_set()
    assert flag.wait(0)
    assert flag.wait()
    assert flag._bells == []


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_wait_for_a_flag_ends_in_time(timeout: float) -> None:
    flag = Flag()
    begun = time.monotonic()
    assert not flag.wait(timeout)
    assert timeout <= time.monotonic() - begun < timeout + SOON
    assert flag._bells == []
    flag.set()
    flag.clear()
    assert not flag.wait(timeout)


def test_who_waited_for_a_flag_knows_that_it_was_set_when_it_no_longer_is() -> None:
    flag = Flag()
    waiter = Background(wait_event, flag, SOON)
    waiting(flag, 1)
    flag.set()
    flag.clear()
    assert waiter.result(SOON) is True


def test_a_flag_set_between_the_look_and_the_wait_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flag = Flag()

    def late(bells: object) -> threading.Lock:
        flag.set()
        return hang(flag._bells)

    monkeypatch.setattr("wsthread.waits.hang", late)
    assert flag.wait()
    assert flag._bells == []


def test_bells_that_are_rung_and_taken_down_at_once() -> None:
    """By threads that set a flag while others give up waiting for it."""
    flag = Flag()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            flag.wait(0)
            flag.set()
            flag.clear()

    workers = [Background(work) for _ in range(4)]
    time.sleep(0.3)
    stop.set()
    for worker in workers:
        worker.result(SOON)
    assert flag._bells == []


def test_a_bell_that_was_not_rung_is_taken_down() -> None:
    bells: list[threading.Lock] = []
    timeouts: list[Optional[float]] = [0, 0.01]
    for timeout in timeouts:
        assert not listen(bells, hang(bells), timeout)
    assert bells == []
    bell = hang(bells)
    ring(bells)
    assert listen(bells, bell, None)
