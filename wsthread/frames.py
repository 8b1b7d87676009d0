"""Bytes <-> frames and messages (RFC 6455 sections 5, 7.4 and 8.1). No I/O, no threads."""

from __future__ import annotations

import codecs
import os
from typing import *
from .errors import ProtocolError, MessageTooBig

OP_CONT, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = 0, 1, 2, 8, 9, 10


class Ping(NamedTuple):
    payload: bytes


class Pong(NamedTuple):
    payload: bytes


class Close(NamedTuple):
    code: int
    reason: str


class Fragment(NamedTuple):
    data: Any
    opcode: int
    final: bool


class FrameParser:
    def __init__(self, m, *, fragments=False, inflater=None):
        self.buf = b""
        self.error = None
        self.plain = True
        self.pending = False
        self.size = 0

    def parse(self, data, limit=1 << 60):
        b = self.buf + data
        out = []
        self.plain = True
        self.size = 0
        self.pending = False
        n = 0
        while True:
            if n >= limit:
                self.pending = bool(b)
                break
            if len(b) < 2:
                break
            l = b[1]
            p = 2
            if l == 126:
                if len(b) < 4:
                    break
                l = int.from_bytes(b[2:4], "big")
                p = 4
            elif l == 127:
                if len(b) < 10:
                    break
                l = int.from_bytes(b[2:10], "big")
                p = 10
            op = b[0] & 15
            if op not in (1, 2, 8, 9, 10):
                self.error = ProtocolError("bad")
                break
            if len(b) < p + l:
                break
            pl = b[p : p + l]
            b = b[p + l :]
            if op == 1:
                out.append(pl.decode())
                n += 1
                self.size += p + l
            elif op == 2:
                out.append(pl)
                n += 1
                self.size += p + l
            else:
                self.plain = False
                if op == 8:
                    out.append(
                        Close(int.from_bytes(pl[:2], "big") if pl else 1005, pl[2:].decode())
                    )
                else:
                    out.append((Ping if op == 9 else Pong)(pl))
        self.buf = b
        return out


def mask(d, k):
    from websockets.speedups import apply_mask

    return apply_mask(d, k)


def encode_frame(op, payload, *, fin=True, rsv1=False):
    k = os.urandom(4)
    l = len(payload)
    h = (
        bytes([0x80 | op, 0x80 | l])
        if l < 126
        else bytes([0x80 | op, 0x80 | 126]) + l.to_bytes(2, "big")
        if l < 65536
        else bytes([0x80 | op, 0x80 | 127]) + l.to_bytes(8, "big")
    )
    return h + k + mask(payload, k)


def encode_close(code, reason=""):
    return b"" if code is None else int(code).to_bytes(2, "big") + reason.encode()


def check_close(code, reason):
    return encode_close(code, reason)
