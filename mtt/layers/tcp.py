"""The lowest layer: a connected socket, TCP as a rule, as a transport.

Not left to the transports of the event loops, for what those cost (docs/performance.md): a task,
two futures and several turns of the loop for each connection that is made, and a copy of all that
passes, because they may keep what `write()` is given. Here only what the kernel has no room for is
copied. And it behaves the same on asyncio's loop and on uvloop: when a socket is ready is told by
`poller`.

A transport is open until `close()`, `cut()`, `abort()` or a failure. What was written is still sent
after the first two (see `linger`), and dropped at the others. Then `connection_lost` is called, in
a turn of the loop of its own, and the socket is closed.

A failure to send is no reason to drop what has been received. The peer's last data may wait in the
kernel, which holds them beyond a reset: they are read and handed up first, as fast as the protocol
takes them, and then the connection is lost. The protocol is told to pause its writing meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

from mtt.layers import linger, pieces
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.kernel import kernel_queue
from mtt.layers.poller import READ, WRITE, poller
from mtt.layers.reads import LARGE_READ, Reads

# Bytes that wait for the kernel. Above HIGH the protocol is told to pause, at LOW to go on.
# So that is what waits at most, and what one more call of write() adds: a read of the other end.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class SocketTransport(StreamTransport):
    """Carries the bytes of `sock`, which it owns, for `protocol`, which is told in this very call.

    Args:
        sock: connected, not blocking.
        peer: the address at its other end, as the socket module has it, if it is known.
    """

    __slots__ = (
        "_closing", "_draining", "_fd", "_loop", "_lost", "_paused", "_peer", "_pieces", "_poller",
        "_read_eof", "_reads", "_send_error", "_sock", "_waiting", "_watched", "_write_eof",
        "_written",
    )  # fmt: skip

    borrows = True
    name = "socket"

    def __init__(self, sock: socket.socket, protocol: StreamProtocol, peer: Any = None) -> None:
        self.write_paused = False  # without a call of super().__init__, which does no more
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._reads = Reads()
        self._peer = peer
        self.upper = protocol
        self._written = 0  # bytes
        # What the kernel had no room for, rarely more than a few; an empty deque takes 600 bytes.
        self._pieces: pieces.Pieces = []
        self._waiting = 0  # bytes in there
        self._paused = False
        self._poller = poller()
        self._watched = 0  # what the poller is to tell: READ, WRITE, both
        self._read_eof = self._write_eof = False
        self._send_error: OSError | None = None  # why nothing can be sent any more
        self._closing = False  # by whom is above
        self._draining = False  # and the descriptor is to be closed when all is sent
        self._lost = False
        try:
            protocol.connection_made(self)
            if not (self._closing or self._paused):
                self._watch(READ)
        except Exception as error:
            self._broken(error)

    # Reading.

    def is_reading(self) -> bool:
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        if not (self._closing or self._paused):
            self._paused = True
            self._unwatch(READ)

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._send_error is not None:
                self._loop.call_soon(self._read_out)
            elif not (self._closing or self._read_eof):
                self._watch(READ)

    def limit_reads(self) -> None:
        """Take READ_SIZE at a time at most, however fast it comes: others wait behind it."""
        self._reads = Reads(large=False)

    def _watch(self, events: int) -> None:
        """Be told of this as well."""
        if events & ~self._watched:
            self._watched |= events
            self._poller.watch(self._fd, self._watched, self._ready)

    def _unwatch(self, events: int) -> None:
        """Not be told of this any more."""
        if events & self._watched:
            self._watched &= ~events
            if self._watched:
                self._poller.watch(self._fd, self._watched, self._ready)
            else:
                self._poller.forget(self._fd)

    def _ready(self, events: int) -> None:
        # Reading first: what came before a reset is lost when writing finds out about that.
        if events & ~WRITE and self._watched & READ:
            self._readable()
        if events & ~READ and self._watched & WRITE:
            self._writable()

    def _readable(self) -> None:
        reads = self._reads
        buffer = reads.buffer
        try:
            count = self._sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error)
            return
        protocol = self.upper
        try:
            if count:
                reads.took(count)
                data = buffer[:count]
                protocol.data_received(data if protocol.borrows else bytes(data))
                return
            self._read_eof = True
            self._unwatch(READ)
            if not protocol.eof_received():
                self.close()
        except Exception as error:
            self._broken(error)

    # Writing.

    def write(self, data: Any) -> None:
        """Send `data`, which is anything that consists of bytes."""
        if self._closing or self._write_eof:
            return
        self._written += len(data)
        if self._pieces:
            self._keep(data, 0)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._send_failed(error)
            return
        if sent < len(data):
            self._watch(WRITE)
            self._keep(data, sent)

    def _keep(self, data: Any, start: int) -> None:
        """Have what comes after the first `start` bytes of `data` sent later."""
        self._waiting += pieces.add(self._pieces, data, start)
        if self._waiting > HIGH_WATER and not self.write_paused:
            self.write_paused = True
            self._tell(self.upper.pause_writing)

    def _writable(self) -> None:
        try:
            sent = pieces.send(self._pieces, self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._send_failed(error)
            return
        self._waiting -= sent
        if not self._pieces:
            self._unwatch(WRITE)
            if self._draining:
                self._lose(None)
            elif self._write_eof:
                self._shut_down()
        if self.write_paused and self._waiting <= LOW_WATER and not self._lost:
            self.write_paused = False
            self._tell(self.upper.resume_writing)

    def get_write_buffer_size(self) -> int:
        return self._waiting

    def unsent(self) -> int:
        return self._waiting + kernel_queue(self._sock)

    @property
    def socket_written(self) -> int:
        return self._written

    def half_closes(self) -> bool | None:
        return True

    def write_eof(self) -> None:
        """Send FIN behind what was written."""
        if not self._closing:
            self._end_writing()

    def _end_writing(self) -> None:
        if not self._write_eof:
            self._write_eof = True
            if not self._pieces:
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # reset, and not read yet
            self._send_failed(error)

    def _send_failed(self, error: OSError) -> None:
        """Nothing can be sent any more; what has been received is still handed up if wanted."""
        wanted = not (self._closing or self._read_eof) and self.upper.reads_after_send_error
        if not wanted or not self._has_more(error):
            self._fail(error)
            return
        self._pieces.clear()
        self._waiting = 0
        self._unwatch(READ | WRITE)
        self._write_eof = True  # `write` drops what it gets
        self._send_error = error
        # Not now: the caller is in the middle of something.
        self._loop.call_soon(self._read_out)
        if not self.write_paused:
            self.write_paused = True
            self._tell(self.upper.pause_writing)

    def _has_more(self, error: OSError) -> bool:
        """Whether data, or the peer's end, are still to be read behind a failure to send."""
        try:
            # EPIPE tells that the peer had sent FIN before it reset the connection. ECONNRESET
            # tells that it had not, and then the kernel's end of data is not the peer's.
            return isinstance(error, BrokenPipeError) or bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _read_out(self) -> None:
        """Hand up what the kernel holds of a connection on which sending has failed."""
        error = self._send_error
        if self._closing or self._paused:
            return
        try:
            data = self._sock.recv(LARGE_READ)
        except OSError:  # nothing is left
            self._fail(error)
            return
        try:
            if data:
                self.upper.data_received(data)
                self._loop.call_soon(self._read_out)
                return
            if isinstance(error, BrokenPipeError):  # see _has_more
                self._read_eof = True
                self.upper.eof_received()
        except Exception as failure:
            self._broken(failure)
            return
        self._fail(error)

    # Ends.

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Deliver what was written, then close; see `linger`."""
        if self._closing:
            return
        self._closing = True
        if self._send_error is not None:
            self._fail(self._send_error)
        elif self._read_eof and not self._pieces:
            self._lose(None)  # the rest is up to the kernel, and there is nothing to wait for
        else:
            self.upper = linger.Lingering(self, self.upper)
            if self._read_eof:
                self._draining = True
            else:
                self._end_writing()
                self._read_on()

    def cut(self) -> None:
        """Deliver what was written, then send RST."""
        if self._closing or not self.unsent():
            self.abort()
            return
        self._closing = True
        self.upper = linger.Cutting(self, self.upper)
        self._read_on()

    def abort(self) -> None:
        """Send RST, and close the socket."""
        linger.reset_on_close(self._sock)
        self._fail(None)

    def drain(self) -> None:
        """Close the socket when what was written has been sent."""
        self._draining = True
        if not self._pieces:
            self._lose(None)

    def drop(self) -> None:
        """Close the socket."""
        self._fail(None)

    def _read_on(self) -> None:
        """Read, to be discarded, what still comes."""
        self._paused = False
        if not (self._read_eof or self._lost):
            self._watch(READ)

    def _tell(self, what: Callable[[], object]) -> None:
        try:
            what()
        except Exception as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        """The protocol has failed."""
        peer = self.get_extra_info("peername")
        whose = f"{peer[0]} port {peer[1]}" if isinstance(peer, tuple) else "a local socket"
        message = f"internal error, which ends the connection with {whose}"
        context = {"message": message, "exception": error, "protocol": self.upper}
        self._loop.call_exception_handler(context)
        self._fail(error)

    def _fail(self, error: Exception | None) -> None:
        """Drop what was to be sent, and end."""
        if self._lost:
            return
        self._pieces.clear()
        self._waiting = 0
        self._closing = True
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        self._lost = True
        self._unwatch(READ | WRITE)
        # Not now: whoever has us fail is in the middle of something.
        self._loop.call_soon(self._over, error)

    def _over(self, error: Exception | None) -> None:
        try:
            self.report_lost(error)
        finally:
            self._sock.close()

    # Who is there.

    def __repr__(self) -> str:
        peer = self.get_extra_info("peername")
        if isinstance(peer, tuple):
            return f"TCP of {peer[0]} port {peer[1]}"
        # A closed one does not tell its peer any more.
        return "TCP" if self._sock.family in (socket.AF_INET, socket.AF_INET6) else "local socket"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        with contextlib.suppress(OSError):  # not there any more
            if name == "peername":
                return self._peer if self._peer is not None else self._sock.getpeername()
            if name == "sockname":
                return self._sock.getsockname()
        return default
