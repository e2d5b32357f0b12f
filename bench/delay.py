"""A TCP relay that delays: `python -m bench.delay LISTEN_PORT CONNECT_PORT SECONDS`.

SECONDS is the way in one direction. It stands in for netem, which asks for root and a kernel with
the module. The TCP handshake through a real network takes a round trip before the first byte can
be sent, while the one with this relay is over at once: so what comes from the connecting side is
held as if it had been sent a round trip after the connection began, and counts in round trips
are what they would be. Bandwidth is not limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

from bench.processes import LOOPBACK

READ_SIZE = 64 * 1024


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, not_before: float
) -> None:
    """Move bytes, each `delay` seconds late, as if none had been sent before `not_before`."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.write_eof()
                return
            writer.write(data)

    async with asyncio.TaskGroup() as group:
        group.create_task(deliver())
        while True:
            data = await reader.read(READ_SIZE)
            waiting.put_nowait((max(loop.time(), not_before) + delay, data))
            if not data:
                break


async def relay(listen: int, connect: int, delay: float) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = asyncio.get_running_loop().time()
        with contextlib.suppress(OSError, ExceptionGroup), contextlib.closing(writer):
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, connect)
            with contextlib.closing(far_writer):
                async with asyncio.TaskGroup() as group:
                    group.create_task(carry(reader, far_writer, delay, start + 2 * delay))
                    group.create_task(carry(far_reader, writer, delay, 0.0))

    server = await asyncio.start_server(handle, LOOPBACK, listen)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
