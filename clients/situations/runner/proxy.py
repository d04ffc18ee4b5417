"""A TCP proxy that cuts, hangs, and sends GOAWAY."""

import asyncio
import socket
import struct
from typing import Final

from runner.services import free_port

_FRAME_HEADER: Final = 9
_GOAWAY: Final = 7
_LINGER: Final = struct.pack("ii", 1, 0)


class Proxy:
    """A proxy in front of a server that speaks HTTP/2 without TLS."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._port = free_port()
        self._links: set[_Link] = set()
        # Set while bytes are forwarded.
        self.flows = asyncio.Event()
        self.flows.set()
        self.connections = 0

    async def start(self) -> None:
        """Listens, on the same port each time."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self._port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await self.flows.wait()
        try:
            there = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(writer)
            return
        link = _Link(self, (reader, writer), there)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            link.reset()

    def reset(self) -> None:
        """Resets all connections."""
        for link in self._links:
            link.reset()

    def cut(self) -> None:
        """Resets all connections, and refuses others until the proxy is started again."""
        if self._server is not None:
            self._server.close()
        self._server = None
        self.reset()

    def hang(self) -> None:
        """Forwards nothing any more. Connections stay open."""
        self.flows.clear()

    def send_goaway(self, last_stream: int) -> None:
        """Sends GOAWAY to all clients, which says that later streams were not handled."""
        payload = struct.pack(">II", last_stream, 0)
        header = struct.pack(">I", len(payload))[1:] + bytes([_GOAWAY, 0, 0, 0, 0, 0])
        for link in self._links:
            link.client.write(header + payload)

    async def close(self) -> None:
        """Ends everything."""
        self.flows.set()
        self.cut()


class _Link:
    """A connection of a client, with the one to the server."""

    def __init__(
        self,
        proxy: Proxy,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._from_client, self.client = here
        self._from_server, self._server = there

    async def run(self) -> None:
        tasks = [asyncio.create_task(it) for it in (self._requests(), self._responses())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _requests(self) -> None:
        while data := await self._from_client.read(1 << 16):
            await self._proxy.flows.wait()
            self._server.write(data)
            await self._server.drain()

    async def _responses(self) -> None:
        """Forwards whole frames, so that others can be sent between them."""
        while True:
            header = await self._from_server.readexactly(_FRAME_HEADER)
            length = int.from_bytes(header[:3], "big")
            payload = await self._from_server.readexactly(length)
            await self._proxy.flows.wait()
            self.client.write(header + payload)
            await self.client.drain()

    def reset(self) -> None:
        for writer in (self.client, self._server):
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        # The peer must see RST, not the end of the stream.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    writer.transport.abort()
