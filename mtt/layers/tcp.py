"""The lowest layer: a connected socket, usually TCP, as a transport.

The event loops' own transports cost too much (docs/performance.md): a task, two futures and several
turns of the loop per connection, and a copy of all data, because they may keep what `write()` is
given. Here only data that the kernel cannot take is copied, and asyncio's loop and uvloop behave
the same: `poller` reports ready sockets.

After a failure to send, received data is not dropped. The peer's last data may be in the kernel,
which keeps it beyond a reset. It is read and handed up first, as fast as the protocol takes it;
then the connection is lost. Meanwhile the protocol's writing is paused.
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
from mtt.layers.reads import LARGE_READ, READ_SIZE, ReadSizer

# Bytes waiting for the kernel: above HIGH the protocol is told to pause, at LOW to resume. One more
# call of write(), a read of the other end, may come on top.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class SocketTransport(StreamTransport):
    """Carries the bytes of `sock`, which it owns.

    Args:
        sock: connected, not blocking.
        protocol: its `connection_made` runs inside the constructor.
        peer: the address of the other end, as returned by the socket module, if known.
    """

    __slots__ = (
        "_closing", "_draining", "_fd", "_loop", "_lost", "_own", "_paused", "_peer", "_pieces",
        "_poller", "_read_eof", "_read_sizer", "_send_error", "_sock", "_waiting", "_watched",
        "_write_eof", "_written",
    )  # fmt: skip

    borrows = True
    name = "socket"

    def __init__(self, sock: socket.socket, protocol: StreamProtocol, peer: Any = None) -> None:
        self.write_paused = False  # all that super().__init__() does
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._read_sizer = ReadSizer()
        self._peer = peer
        self._own: tuple[str, int] | None = None  # the socket's, unless `set_peer` was called
        self.upper = protocol
        self._written = 0  # bytes
        # What the kernel could not take, rarely more than a few; an empty deque takes 600 bytes.
        self._pieces: pieces.Pieces = []
        self._waiting = 0  # bytes in `_pieces`
        self._paused = False
        self._poller = poller()
        self._watched = 0  # events that the poller reports: READ, WRITE, or both
        self._read_eof = self._write_eof = False
        self._send_error: OSError | None = None  # nothing can be sent any more
        self._closing = False
        self._draining = False  # close the descriptor when everything is sent
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
        self._read_sizer = ReadSizer(large=False)

    def _watch(self, events: int) -> None:
        if events & ~self._watched:
            self._watched |= events
            ready = self._readable if self._watched == READ else self._ready
            self._poller.watch(self._fd, self._watched, ready)

    def _unwatch(self, events: int) -> None:
        if events & self._watched:
            self._watched &= ~events
            if self._watched:
                ready = self._readable if self._watched == READ else self._ready
                self._poller.watch(self._fd, self._watched, ready)
            else:
                self._poller.forget(self._fd)

    def _ready(self, events: int) -> None:
        # Reading first: data before a reset is lost when writing fails because of the reset.
        if events & ~WRITE and self._watched & READ:
            self._readable()
        if events & ~READ and self._watched & WRITE:
            self._writable()

    def _readable(self, _events: int = READ) -> None:
        sizer = self._read_sizer
        buffer = sizer.buffer
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
                if count >= READ_SIZE or sizer.quick:
                    sizer.update(count)
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
        """Keep `data`, without its first `start` bytes, to send it later."""
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
        """Nothing can be sent any more; received data is still handed up if wanted."""
        wanted = not (self._closing or self._read_eof) and self.upper.reads_after_send_error
        if not wanted or not self._has_more(error):
            self._fail(error)
            return
        self._pieces.clear()
        self._waiting = 0
        self._unwatch(READ | WRITE)
        self._write_eof = True  # `write` drops what it gets
        self._send_error = error
        # Not at once: the caller is in the middle of something.
        self._loop.call_soon(self._read_out)
        if not self.write_paused:
            self.write_paused = True
            self._tell(self.upper.pause_writing)

    def _has_more(self, error: OSError) -> bool:
        """Whether data or the peer's end can still be read after a failure to send."""
        try:
            # EPIPE means that the peer had sent FIN before it reset the connection. ECONNRESET
            # means that it had not, and then the kernel's end of data is not the peer's.
            return isinstance(error, BrokenPipeError) or bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _read_out(self) -> None:
        """Hand up the kernel's data of a connection on which sending has failed."""
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
        if self._closing:
            return
        self._closing = True
        if self._send_error is not None:
            self._fail(self._send_error)
        elif self._read_eof and not self._pieces:
            self._lose(None)  # the kernel does the rest
        else:
            self.upper = linger.Lingering(self, self.upper)
            if self._read_eof:
                self._draining = True
            else:
                self._end_writing()
                self._read_on()

    def cut(self) -> None:
        if self._closing or not self.unsent():
            self.abort()
            return
        self._closing = True
        self.upper = linger.Lingering(self, self.upper, resets=True)
        self._read_on()

    def abort(self) -> None:
        linger.reset_on_close(self._sock)
        self._fail(None)

    def drain(self) -> None:
        """Close the socket when everything is sent."""
        self._draining = True
        if not self._pieces:
            self._lose(None)

    def drop(self) -> None:
        """Close the socket."""
        self._fail(None)

    def _read_on(self) -> None:
        """Resume reading, to discard what still arrives."""
        self._paused = False
        if not (self._read_eof or self._lost):
            self._watch(READ)

    def _tell(self, method: Callable[[], object]) -> None:
        try:
            method()
        except Exception as error:
            self._broken(error)

    def _broken(self, error: Exception) -> None:
        """Report an exception of the protocol, and end."""
        message = f"internal error, which ends the connection: {self!r}"
        context = {"message": message, "exception": error, "protocol": self.upper}
        self._loop.call_exception_handler(context)
        self._fail(error)

    def _fail(self, error: Exception | None) -> None:
        """Drop unsent data, and end."""
        if self._lost:
            return
        self._pieces.clear()
        self._waiting = 0
        self._closing = True
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        self._lost = True
        self._unwatch(READ | WRITE)
        # Not at once: the caller is in the middle of something.
        self._loop.call_soon(self._over, error)

    def _over(self, error: Exception | None) -> None:
        try:
            self.report_lost(error)
        finally:
            self._sock.close()

    # Information.

    def __repr__(self) -> str:
        peer = self.get_extra_info("peername")
        if isinstance(peer, tuple):
            return f"TCP of {peer[0]} port {peer[1]}"
        # A closed socket does not know its peer any more.
        return "TCP" if self._sock.family in (socket.AF_INET, socket.AF_INET6) else "local socket"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        with contextlib.suppress(OSError):  # closed
            if name == "peername":
                return self._peer if self._peer is not None else self._sock.getpeername()
            if name == "sockname":
                return self._own if self._own is not None else self._sock.getsockname()
        return default

    def set_peer(self, peer: tuple[str, int], own: tuple[str, int] | None = None) -> None:
        self._peer = peer
        if own is not None:
            self._own = own
