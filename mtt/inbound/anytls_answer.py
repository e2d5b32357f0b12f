"""Tells an AnyTLS client whether the destination of its stream was reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from mtt.errors import NetworkError
from mtt.layers.anytls_server import ServerStream
from mtt.layers.base import StreamTransport

# The reference client gives up a whole session, with all that is in it, when 3 s after the
# beginning of a stream it has not heard how that went. So a destination that takes longer is
# reported as reached (the protocol allows that), with a second left for the way there and back; if
# it is not in the end, the client sees a stream that ends without a byte.
ANSWER_TIME = 2.0


async def answered(stream: ServerStream, connecting: Awaitable[StreamTransport]) -> StreamTransport:
    """Wait for the connection to a stream's destination, and tell the client how it goes.

    Raises what `connecting` raises; the client knows then, and the stream is closed.
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


def answered_at_once(stream: ServerStream, far: StreamTransport | None) -> StreamTransport | None:
    """Tell the client that its destination is reached, if it is."""
    if far is not None:
        stream.acknowledge()
    return far
