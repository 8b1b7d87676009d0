"""What the tests share: real servers in their own process, raw peers, a recording delegate."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import multiprocessing
import queue
import socket
import ssl
import struct
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Tuple

import trustme
from websockets.sync.server import serve

import wsthread

#: Bounds every wait of a test for something that has to happen.
SOON = 10.0


class Certificates:
    """A certificate authority and a server certificate of its making.

    If not told otherwise it is for 127.0.0.1, ::1, localhost, and server.test, a name that
    resolves nowhere.
    """

    def __init__(self, *names: str) -> None:
        self._ca = trustme.CA()
        names = names or ("127.0.0.1", "localhost", "::1", "server.test")
        self._cert = self._ca.issue_cert(*names)

    def client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._ca.configure_trust(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._cert.configure_cert(context)
        return context

    def write_authority(self, directory: Path) -> str:
        path = directory / "authority.pem"
        self._ca.cert_pem.write_to_path(str(path))
        return str(path)

    def write(self, directory: Path) -> str:
        path = directory / "server.pem"
        self._cert.private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)


def _serve(pipe: Any, pem: Optional[str]) -> None:
    def handler(connection: Any) -> None:
        with contextlib.suppress(Exception):
            for message in connection:
                if isinstance(message, str) and message.startswith("push "):
                    for number in range(int(message[5:])):
                        connection.send(str(number))
                elif isinstance(message, str) and message.startswith("close "):
                    _, code, reason = message.split(" ", 2)
                    connection.close(int(code), reason)
                else:
                    connection.send(message)

    context = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    server = serve(
        handler, "127.0.0.1", 0, ssl=context, compression=None, max_size=None, ping_interval=None
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.socket.getsockname()[1])
    with contextlib.suppress(EOFError):
        pipe.recv()


@contextlib.contextmanager
def in_process(target: Callable[..., None], *args: Any) -> Iterator[int]:
    """Run a server in a process of its own; gives the port it reports.

    `target(pipe, *args)` sends its port, and ends when the pipe does.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(SOON * 3):
            raise TimeoutError("the server did not start")
        yield ours.recv()
    finally:
        ours.close()
        process.join(SOON)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


@contextlib.contextmanager
def echo_server(pem: Optional[str] = None) -> Iterator[str]:
    """A real server in a process of its own; gives its URL.

    It echoes; ``push N`` makes it send the numbers below N, ``close CODE REASON`` close.
    """
    with in_process(_serve, pem) as port:
        yield f"{'ws' if pem is None else 'wss'}://127.0.0.1:{port}/"


def _serve_raw(pipe: Any, script: Callable[[RawConnection], None], pem: Optional[str]) -> None:
    context = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    with RawServer(script, context) as server:
        pipe.send(server.port)
        with contextlib.suppress(EOFError):
            pipe.recv()


@contextlib.contextmanager
def raw_process(
    script: Callable[[RawConnection], None], pem: Optional[str] = None
) -> Iterator[str]:
    """A `RawServer` in a process of its own; gives its URL. `script` is a module's function."""
    with in_process(_serve_raw, script, pem) as port:
        yield f"{'ws' if pem is None else 'wss'}://127.0.0.1:{port}/"


def frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    """A server's frame, unmasked."""
    first = (0x80 if fin else 0) | rsv | opcode
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    if len(payload) < 65536:
        return bytes([first, 126]) + struct.pack("!H", len(payload)) + payload
    return bytes([first, 127]) + struct.pack("!Q", len(payload)) + payload


def close_frame(code: int = 1000, reason: str = "") -> bytes:
    return frame(8, struct.pack("!H", code) + reason.encode())


class RawConnection:
    """The server's end of one connection, byte by byte. Every read is bounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(SOON)
        self._buffer = b""
        self.head = b""  # the request, once it was read
        self.rsv1 = False  # whether the frame read last is compressed (RFC 7692)

    def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        self.head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return self.head

    def accept_head(self, head: bytes) -> bytes:
        key = next(
            line.split(b":", 1)[1].strip()
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key:")
        )
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n"
        )

    def upgrade(self, behind: bytes = b"", headers: bytes = b"") -> bytes:
        """Do the server's part of the opening; `behind` comes in the packet of the answer."""
        head = self.read_head()
        self.sock.sendall(self.accept_head(head) + headers + b"\r\n" + behind)
        return head

    @property
    def buffered(self) -> bool:
        """Whether bytes are here that nobody has taken yet."""
        return bool(self._buffer)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def read_frame(self) -> Tuple[int, bytes]:
        """The next frame of the client as opcode and unmasked payload."""
        first, second = self._exactly(2)
        assert second & 0x80, "a client's frame is masked"
        self.rsv1 = bool(first & 0x40)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._exactly(8))
        key = self._exactly(4)
        payload = self._exactly(length)
        repeated = (key * (length // 4 + 1))[:length]
        plain = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        return first & 0x0F, plain.to_bytes(length, "big")

    def read_to_end(self) -> bytes:
        """What comes until the client's end; a reset counts as one."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._more()
        data, self._buffer = self._buffer, b""
        return data

    def answer_close(self) -> Tuple[int, bytes]:
        """Read up to the close frame, answer it; return its code and reason."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == 8:
                self.sock.sendall(frame(8, payload))
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                return code, payload[2:]

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawServer:
    """Runs `script(connection)` for every connection, one at a time, on a thread."""

    def __init__(
        self,
        script: Callable[[RawConnection], None],
        context: Optional[ssl.SSLContext] = None,
        receive_buffer: Optional[int] = None,
    ) -> None:
        self._script = script
        self._context = context
        self._listener = socket.socket()
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'ws' if context is None else 'wss'}://127.0.0.1:{self.port}/"
        #: What a script raised; `close` raises it again.
        self.failure: Optional[BaseException] = None
        self.connections = 0
        self._thread = threading.Thread(target=self._run, name="raw-server", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                sock.settimeout(SOON)
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True)
                connection = RawConnection(sock)
                try:
                    self._script(connection)
                finally:
                    connection.sock.close()
            except (ConnectionError, EOFError, ssl.SSLError):
                sock.close()  # the client ended first: whether it may is the test's to say
            except BaseException as error:
                self.failure = error
                sock.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(SOON * 2)
        assert not self._thread.is_alive(), "the raw server's script hangs"
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(BaseException):
                self.close()


class Peer:
    """A raw server whose connections the test drives itself, on its own thread."""

    def __init__(self, upgrade: bool = True, **options: Any) -> None:
        self._upgrade = upgrade
        self._waiting: queue.Queue[RawConnection] = queue.Queue()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self.server = RawServer(self._script, **options)
        self.url = self.server.url

    def _script(self, connection: RawConnection) -> None:
        if self._upgrade:
            connection.upgrade()
        else:
            connection.read_head()
        self._waiting.put(connection)
        assert self._released.wait(SOON * 3)
        self._released.clear()

    def accept(self) -> RawConnection:
        """The next connection; it stays open until `release`."""
        return self._waiting.get(timeout=SOON)

    def release(self) -> None:
        self._released.set()


@contextlib.contextmanager
def peer(**options: Any) -> Iterator[Peer]:
    peer = Peer(**options)
    try:
        yield peer
    finally:
        peer.release()
        peer.server.close()


@contextlib.contextmanager
def opened(url: str, delegate: Any = None, **options: Any) -> Iterator[wsthread.WebSocketClient]:
    client = make(url, delegate, **options)
    try:
        client.connect()
        yield client
    finally:
        client.abort()


def make(url: str, delegate: Any = None, **options: Any) -> wsthread.WebSocketClient:
    certificates = options.pop("certificates", None)
    if certificates is not None and url.startswith("wss"):
        options["ssl_context"] = certificates.client_context()
    options.setdefault("reconnect", False)
    return wsthread.WebSocketClient(url, delegate, **options)


def narrow(client: wsthread.WebSocketClient, size: int = 8192) -> None:
    """Have the kernel take little, so that a peer that does not read is felt soon."""
    session: Any = client._session
    sock = session._connection.transport.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def eventually(condition: Callable[[], bool], timeout: float = SOON) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


class Background(threading.Thread):
    """Runs a function; `result` gives back what it returned or raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._args = function, args
        self._error: Optional[BaseException] = None
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = SOON) -> Any:
        self.join(timeout)
        assert not self.is_alive(), "hangs"
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        return self._value

    def error(self, timeout: float = SOON) -> BaseException:
        self.join(timeout)
        assert not self.is_alive(), "hangs"
        assert self._error is not None, "nothing was raised"
        return self._error


@contextlib.contextmanager
def black_hole() -> Iterator[Tuple[str, int]]:
    """An address on the loopback that takes a SYN and never answers it: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


def quickest(attempt: Callable[[], float], bound: float, attempts: int = 4) -> None:
    """Check a bound in seconds: the fastest of some attempts keeps it, whatever else runs here."""
    took = []
    for _ in range(attempts):
        took.append(attempt())
        if took[-1] <= bound:
            return
    raise AssertionError(f"took {took} s; the bound is {bound} s")
