"""A proxy in front of a server, which passes connections on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import Final

Address = tuple[str, int]
_PIECE: Final = 1 << 16


class PassingProxy:
    """Takes connections at one address and passes them on to another.

    Args:
        address: Where it listens.
        server: Where the server listens; read for every connection, so that it may change.
        context: Lets it speak TLS with its clients; None for none.

    Attributes:
        address: Where it listens.
        server: Where the server listens.
        delay_s: How long each packet is held back, both ways.
    """

    def __init__(
        self, address: Address, server: Address, context: ssl.SSLContext | None = None
    ) -> None:
        self.address, self.server, self.delay_s = address, server, 0.0
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Listen; when this returns, connections are taken."""
        # Tests break connections on purpose, and their clients see the error.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._thread.start()
        listening = asyncio.start_server(self._pass_on, *self.address, ssl=self._context)
        self._listener = asyncio.run_coroutine_threadsafe(listening, self._loop).result(30)

    def stop(self) -> None:
        """Stop listening and close every connection."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            from_server, to_server = await asyncio.open_connection(*self.server)
            with contextlib.closing(to_server):
                ways = [self._copy(reader, to_server), self._copy(from_server, writer)]
                tasks = [asyncio.ensure_future(way) for way in ways]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in tasks:
                        task.cancel()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
