"""Tells an AnyTLS client whether the destination of its stream was reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from mtt.errors import NetworkError
from mtt.layers.anytls_server import ServerStream
from mtt.layers.base import StreamTransport

# The reference client closes a session, with all its streams, if a stream is not answered within
# 3 s. So a destination that takes longer is reported as reached, which the protocol allows, with a
# second left for the round trip. If it fails later, the stream ends without a byte.
ANSWER_TIME = 2.0


async def report_outcome(
    stream: ServerStream, connecting: Awaitable[StreamTransport]
) -> StreamTransport:
    """Wait for the connection to the destination, and tell the client how it ended.

    Raises what `connecting` raises, after telling the client and closing the stream.
    """
    early = asyncio.get_running_loop().call_later(ANSWER_TIME, stream.acknowledge)
    try:
        far = await connecting
    except NetworkError as error:
        stream.acknowledge(error.outcome)
        stream.close()
        raise
    finally:
        early.cancel()
    stream.acknowledge()
    return far


def report_reached(stream: ServerStream, far: StreamTransport | None) -> StreamTransport | None:
    """Tell the client that its destination was reached, if it was."""
    if far is not None:
        stream.acknowledge()
    return far
