"""What a TLS layer sends because the peer's TLS asks for it: bounded, and no data."""

from __future__ import annotations

from pathlib import Path

from mtt.layers.tls import ANSWERS_LIMIT
from tests.layers.tls_side import V13, Peer
from tests.support.certs import Certs
from tests.support.keyupdates import ForgedClient
from tests.support.transports import turns

ANSWER = 27  # bytes of a key update, with the head of its record and the tag (RFC 8446, 5.2)


class Asking(Peer):
    """A client that asks for key updates."""

    def __init__(self, certs: Certs, directory: Path) -> None:
        keylog = str(directory / "keys")
        super().__init__(certs, V13, keylog=keylog)
        self.heard()  # session tickets
        cipher = self.ssl.cipher()
        assert cipher is not None
        self.forged = ForgedClient(keylog, cipher[0])

    def ask(self, count: int = 1) -> None:
        self.feed(b"".join(self.forged.key_update() for _ in range(count)))


async def test_key_updates_are_answered(certs: Certs, tmp_path: Path) -> None:
    async with Asking(certs, tmp_path) as one:
        one.ask(3)
        # OpenSSL gives the last answer with what it does next.
        assert len(one.transport.sent) >= 2 * ANSWER
        one.layer.write(b"with the new keys")
        assert one.heard() == b"with the new keys"
        one.feed(one.forged.data(b"likewise"))
        assert one.recorder.data == b"likewise"


async def test_peer_that_reads_may_ask_without_end(certs: Certs, tmp_path: Path) -> None:
    async with Asking(certs, tmp_path) as one:
        for _ in range(2):
            one.ask(2 * ANSWERS_LIMIT // ANSWER)
            assert one.transport.reading
        for _ in range(4):
            one.layer.pause_writing()
            one.ask(ANSWERS_LIMIT // ANSWER)
            assert one.transport.reading
            one.layer.resume_writing()


async def test_peer_that_does_not_read_answers_is_not_read(certs: Certs, tmp_path: Path) -> None:
    async with Asking(certs, tmp_path) as one:
        one.layer.pause_writing()
        one.transport.take()
        asked = 0
        while one.transport.reading:
            one.ask()
            asked += 1
        assert asked <= ANSWERS_LIMIT // ANSWER + 2
        # The protocol above may pause and resume as it likes.
        one.layer.pause_reading()
        one.layer.resume_reading()
        await turns()
        assert not one.transport.reading
        one.layer.resume_writing()
        assert one.transport.reading
        one.feed(one.forged.data(b"goes on"))
        assert one.recorder.data == b"goes on"


async def test_reading_stays_paused_for_the_protocol_after_answers(
    certs: Certs, tmp_path: Path
) -> None:
    async with Asking(certs, tmp_path) as one:
        one.layer.pause_writing()
        one.ask(ANSWERS_LIMIT // ANSWER + 2)
        assert not one.transport.reading
        one.layer.pause_reading()
        one.layer.resume_writing()
        assert not one.transport.reading
        one.layer.resume_reading()
        await turns()
        assert one.transport.reading


async def test_answers_are_not_unsent_data(certs: Certs, tmp_path: Path) -> None:
    async with Asking(certs, tmp_path) as one:
        one.transport.take()
        one.ask(10)
        one.transport.buffered = len(one.transport.sent)
        assert one.layer.unsent() == 0
        one.layer.write(bytes(1000))
        one.transport.buffered = size = len(one.transport.sent)
        assert one.layer.unsent() == size
        one.ask(10)
        one.transport.buffered = len(one.transport.sent)
        assert one.layer.unsent() == size
        one.transport.buffered -= size
        assert one.layer.unsent() == 0
