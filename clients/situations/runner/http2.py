"""A server that speaks HTTP/2 (RFC 9113), but answers no call of gRPC as a library would."""

import asyncio
import struct
from typing import Final

from runner.services import free_port

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER: Final = 9
_HEADERS, _RST_STREAM, _SETTINGS, _PING = 1, 3, 4, 6
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4

REFUSED_STREAM: Final = 7
CANCEL: Final = 8
INTERNAL_ERROR: Final = 2


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def status(stream: int, code: int) -> bytes:
    """Returns an answer that has only a status of HTTP."""
    # A literal value of `:status`, which is number 8 of the static table (RFC 7541).
    fields = b"\x08\x03" + str(code).encode()
    return frame(_HEADERS, _END_STREAM | _END_HEADERS, stream, fields)


def reset(stream: int, code: int) -> bytes:
    """Returns the abrupt end of a stream."""
    return frame(_RST_STREAM, 0, stream, struct.pack(">I", code))


class RawServer:
    """Answers the first requests with frames that are given, and then nothing."""

    def __init__(self, answers: int, kind: str, code: int) -> None:
        self._left = answers
        self._make = {"status": status, "reset": reset}[kind]
        self._code = code
        self._server: asyncio.Server | None = None
        port = free_port()
        self._port = port
        self.url = f"http://127.0.0.1:{port}"
        self.requests = 0

    async def start(self) -> None:
        """Listens."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(len(_PREFACE))
            writer.write(frame(_SETTINGS, 0, 0))
            while True:
                header = await reader.readexactly(_HEADER)
                kind, flags, stream = struct.unpack(">BBI", header[3:])
                payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    writer.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))
                elif kind == _HEADERS:
                    self.requests += 1
                    if self._left > 0:
                        self._left -= 1
                        writer.write(self._make(stream, self._code))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
