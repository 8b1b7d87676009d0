"""Where callbacks run."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from concurrent.futures import Executor
from typing import Callable, Deque, List, Optional

from .outbox import move
from .transport import Waker
from .waits import hang, listen, nap, ring

Job = Callable[[], None]


class JoinableThread(threading.Thread):
    """A daemon thread that several threads may join at once.

    Before CPython 3.13 such joins disturb each other (an AssertionError or a RuntimeError in
    one of them), so they take turns.
    """

    def __init__(self, target: Callable[..., None], argument: object, name: str) -> None:
        super().__init__(target=target, args=(argument,), name=name, daemon=True)
        self._turn = threading.Lock()

    def join(self, timeout: Optional[float] = None) -> None:
        begun = time.monotonic()
        taken: List[bool] = []
        try:
            # In one call, of C: Ctrl-C does not come while the lock is taken and nobody knows.
            taken.extend(map(self._turn.acquire, (True,), (-1 if timeout is None else timeout,)))
            if taken[0]:
                left = None if timeout is None else begun + timeout - time.monotonic()
                super().join(None if left is None else max(0.0, left))
        finally:
            if True in taken:
                self._turn.release()


class Dispatcher:
    """Decides where the callbacks of its clients run. Subclass it to decide otherwise.

    A client that has events calls `schedule` with a job; the job runs the events that wait,
    in order. Jobs of one client never overlap, whatever threads they are called on.
    """

    #: Whether the client's reader runs the callbacks itself and `schedule` is never called.
    inline = False

    def schedule(self, job: Job) -> None:
        """Have ``job()`` called once, soon. Called on any thread; must not wait for the job.

        What it raises ends the callbacks of the client quietly.
        """
        raise NotImplementedError

    def pumped_here(self) -> bool:
        """Whether only the calling thread can run the jobs, so that it must not wait for them."""
        return False

    def entered(self) -> None:
        """A job begins, on the calling thread."""

    def ended(self) -> None:
        """A client's last callback of a life has run."""

    def join(self, timeout: Optional[float]) -> None:
        """Wait until the threads of a dispatcher that has ended are gone."""

    def forked(self) -> None:
        """The process is a forked child, in which no other thread exists. Must take no lock."""

    def close(self) -> None:
        """Give back what the dispatcher holds. Clients must be disconnected before."""


def _work(jobs: queue.SimpleQueue[Optional[Job]]) -> None:
    closing = False
    while not (closing and jobs.empty()):
        job = jobs.get()
        if job is None:
            closing = True
        else:
            job()
        del job


class _Worker:
    """A daemon thread and its jobs. The thread ends when the worker is dropped."""

    __slots__ = ("jobs", "thread")

    def __init__(self, name: str) -> None:
        self.jobs: queue.SimpleQueue[Optional[Job]] = queue.SimpleQueue()
        self.thread = JoinableThread(_work, self.jobs, name)

    def __del__(self) -> None:
        jobs = getattr(self, "jobs", None)
        if jobs is not None:
            jobs.put(None)


class ThreadDispatcher(Dispatcher):
    """Runs callbacks on a thread of its own, started with the first callback.

    One instance may serve many clients, each in order; a callback that blocks then delays the
    others'. Close it with `close()`, or use it as a context manager. The default dispatcher of
    a client is one of its own, closed with the client.
    """

    def __init__(self, name: str = "wsthread-dispatcher") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._worker: Optional[_Worker] = None  # the lock's
        self._closed = False  # the lock's

    def schedule(self, job: Job) -> None:
        with self._lock:
            worker = self._worker
            if self._closed:
                # What waited when it was closed may take more than one turn.
                if worker is None or worker.thread is not threading.current_thread():
                    raise RuntimeError("the dispatcher is closed")
            elif worker is None:
                worker = self._worker = _Worker(self._name)
                # Before the start: a thread that falls asleep first costs more than most jobs.
                worker.jobs.put(job)
                try:
                    worker.thread.start()
                except BaseException:
                    self._worker = None
                    raise
                return
            worker.jobs.put(job)

    def forked(self) -> None:
        self._lock = threading.Lock()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.jobs.put(None)  # who has just started it holds it in a frame that never ends

    def close(self) -> None:
        """End the thread after the callbacks that wait, and wait for that; any thread."""
        with self._lock:
            self._closed = True
            worker = self._worker
        if worker is not None:
            worker.jobs.put(None)
            if worker.thread is not threading.current_thread():
                worker.thread.join()
                with self._lock:
                    self._worker = None

    def __enter__(self) -> ThreadDispatcher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class OwnThreadDispatcher(ThreadDispatcher):
    """One client's default: its thread ends with each life and starts again with the next."""

    def __init__(self) -> None:
        super().__init__()
        self._last: Optional[threading.Thread] = None  # the lock's: the thread that ends

    def ended(self) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                self._last = worker.thread

    def join(self, timeout: Optional[float]) -> None:
        with self._lock:
            thread = self._last
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)


class InlineDispatcher(Dispatcher):
    """Runs callbacks on the reader's own thread: no hand-over, the lowest latency.

    A callback that blocks then stops everything of its client: pings are not answered and
    keepalive rests, `disconnect()` on another thread waits no longer than its timeout and then
    returns False although the reader still runs, and the reader ends when the callback does.
    Use it for callbacks that are quick.
    """

    inline = True


class ExecutorDispatcher(Dispatcher):
    """Runs callbacks on a ``concurrent.futures`` pool of yours, each client's one at a time.

    The pool stays yours: shut it down after the clients. A pool that is shut down earlier ends
    the callbacks. A callback that is still running delays the interpreter's exit, as any job.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def schedule(self, job: Job) -> None:
        self._executor.submit(job)


class PumpDispatcher(Dispatcher):
    """Runs callbacks where the program pumps them: for programs with a loop of their own.

    Call `run_pending` from time to time or when `fileno` is readable, or give the thread away
    to `run_forever`. The pumping thread is the one that pumped last, and at first the one that
    made the dispatcher; `disconnect()` and `wait()` on it run the callbacks themselves.
    For Tk: ``root.createfilehandler(dispatcher.fileno(), tkinter.READABLE, ...)``, or `after`
    on Tk's own thread.
    """

    def __init__(self) -> None:
        self._waker = Waker()
        self._lock = threading.Lock()
        self._bells: List[threading.Lock] = []  # of threads in `run_forever`
        self._jobs: Deque[Job] = deque()  # the lock's
        self._stopped = False  # the lock's
        self._closed = False  # the lock's
        self._thread = threading.get_ident()  # written by the thread that pumps

    def schedule(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the dispatcher is closed")
            self._jobs.append(job)
            ring(self._bells)
            self._waker.wake()

    def pumped_here(self) -> bool:
        return self._thread == threading.get_ident()

    def forked(self) -> None:
        self._lock = threading.Lock()
        self._bells.clear()
        self._jobs.clear()
        self._waker.close()
        self._waker = Waker()

    def fileno(self) -> int:
        """Return a descriptor that is readable while callbacks wait; for select and the like."""
        return self._waker.fileno()

    def run_pending(self) -> int:
        """Run the callbacks that wait; return how many clients had some. Does not wait."""
        self._thread = threading.get_ident()
        taken: List[Job] = []
        try:
            return self._run_jobs(taken)
        except BaseException:  # Ctrl-C, in a callback or before one: the others still wait
            with self._lock:
                self._jobs.extendleft(taken)  # it may not have begun; one too many is none
                if not self._closed:
                    self._waker.wake()
            raise

    def _run_jobs(self, taken: List[Job]) -> int:
        """Run the jobs that wait; each is in `taken` while it runs."""
        self._waker.drain()
        count = len(self._jobs)
        for done in range(count):
            with self._lock:
                if not self._jobs:
                    return done
                move(self._jobs, 1, taken)
            taken[0]()
            taken.clear()
        return count

    def run_forever(self) -> None:
        """Run callbacks as they come until `stop()` is called on any thread."""
        while True:
            self.run_pending()
            with self._lock:
                if self._stopped:
                    self._stopped = False
                    return
                if self._jobs:
                    continue
                bell = hang(self._bells)
            listen(self._bells, bell, nap(None))

    def stop(self) -> None:
        """End `run_forever`: the one that runs, or else the next. Any thread, any callback."""
        with self._lock:
            self._stopped = True
        ring(self._bells)

    def close(self) -> None:
        """Close the descriptor, on the thread that pumps; nothing is run from then on."""
        self.stop()
        with self._lock:
            self._closed = True
            self._jobs.clear()
            self._waker.close()


class PostDispatcher(Dispatcher):
    """Runs callbacks wherever ``post(job)`` has them run.

    `post` is called on any thread with a function without arguments, must return at once and
    have it called later: ``loop.call_soon_threadsafe``, ``GLib.idle_add``, a Qt signal. (Not
    Tk's ``after``: from another thread it waits for Tk. Use a `PumpDispatcher`.) Jobs left in
    a queue that nobody serves keep nothing alive.
    """

    def __init__(self, post: Callable[[Job], object]) -> None:
        if not callable(post):
            raise TypeError(f"post must be callable, not {type(post).__name__}")
        self._post = post
        self._thread: Optional[int] = None  # where the last job ran

    def schedule(self, job: Job) -> None:
        self._post(job)

    def entered(self) -> None:
        self._thread = threading.get_ident()

    def pumped_here(self) -> bool:
        return self._thread == threading.get_ident()
