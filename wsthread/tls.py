"""TLS as a filter of bytes: no socket, no waiting (ssl.SSLObject over ssl.MemoryBIO)."""

from __future__ import annotations

import ssl
from typing import List, Optional

from .errors import detached

#: What one record holds at most (RFC 8446 5.1). OpenSSL gives one at a time, and to make room for
#: more, of which most is given back, costs as much as decrypting.
_READ = 16384


class TLSFilter:
    """One TLS layer over a stream of bytes.

    Its owner serialises every call (the transport's write lock): OpenSSL does not allow two
    threads in one connection's state. No call waits.
    """

    __slots__ = ("_outgoing", "broken", "ended", "incoming", "object")

    def __init__(self, context: ssl.SSLContext, server_hostname: Optional[str]) -> None:
        self.incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ended = False  # the peer will send no more plain bytes
        self.broken: Optional[ssl.SSLError] = None  # what the next `decrypt` raises
        self.object = context.wrap_bio(
            self.incoming, self._outgoing, server_hostname=server_hostname
        )

    def handshake(self) -> bool:
        """Go as far as the bytes at hand allow; return whether the handshake is complete."""
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def decrypt(self, data: Optional[bytes]) -> bytes:
        """Take what the network brought (None: nothing new, b"": its end); return plain bytes."""
        if self.broken is not None:
            error, self.broken = self.broken, None
            try:
                raise error
            finally:
                del error
        if data:
            self.incoming.write(data)
        elif data is not None:
            self.incoming.write_eof()
        chunks: List[bytes] = []
        try:
            while True:
                chunk = self.object.read(_READ)
                if not chunk:
                    self.ended = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # The peer's end, with or without a close_notify: the WebSocket close frame, not
            # TLS, tells whether it was a proper one.
            self.ended = True
        except ssl.SSLError as error:
            if not chunks:
                raise
            self.broken = detached(error)  # what came before goes first
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def encrypt(self, data: bytes) -> bytes:
        """Return the records that carry `data`, and whatever else TLS owes the network."""
        view = memoryview(data)
        while view:
            view = view[self.object.write(view) :]
        return self.pending()

    def pending(self) -> bytes:
        """Return the bytes TLS itself owes the network (handshake, alerts, key updates)."""
        return self._outgoing.read() if self._outgoing.pending else b""
