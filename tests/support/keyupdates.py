"""Key updates of TLS 1.3 (RFC 8446, 4.6.3), which Python's ssl module cannot ask for.

They are records of their own making: with a client's traffic secret, from a key log, anybody can
write in its name. The client's own TLS object must not write any more after that.
"""

from __future__ import annotations

import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_HANDSHAKE, _APPLICATION_DATA = 22, 23
_KEY_UPDATE, _UPDATE_REQUESTED = 24, 1


class ForgedClient:
    """Goes on for a client that has said nothing since its handshake.

    Args:
        keylog: the file to which the client's TLS context has logged its keys.
        cipher: the cipher suite, as OpenSSL names it.
    """

    def __init__(self, keylog: str, cipher: str) -> None:
        lines = [line.split() for line in Path(keylog).read_text().splitlines()]
        (secret,) = (line[2] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
        self._secret = bytes.fromhex(secret)
        self._hash: HashAlgorithm = SHA384() if cipher.endswith("SHA384") else SHA256()
        self._aead = ChaCha20Poly1305 if "CHACHA20" in cipher else AESGCM
        self._key_size = 16 if "AES_128" in cipher else 32
        self._use_secret()

    def data(self, data: bytes) -> bytes:
        """A record with application data."""
        return self._record(data + bytes((_APPLICATION_DATA,)))

    def key_update(self) -> bytes:
        """A record that changes our keys and asks the peer to do the same."""
        message = struct.pack(">I", _KEY_UPDATE << 24 | 1) + bytes((_UPDATE_REQUESTED,))
        record = self._record(message + bytes((_HANDSHAKE,)))
        self._secret = self._expand("traffic upd", self._hash.digest_size)
        self._use_secret()
        return record

    def _use_secret(self) -> None:
        self._cipher = self._aead(self._expand("key", self._key_size))
        self._iv = int.from_bytes(self._expand("iv", 12), "big")
        self._sequence = 0

    def _record(self, plaintext: bytes) -> bytes:
        head = struct.pack(">BHH", _APPLICATION_DATA, 0x0303, len(plaintext) + 16)
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return head + self._cipher.encrypt(nonce, plaintext, head)

    def _expand(self, label: str, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446, 7.1) without a context."""
        name = b"tls13 " + label.encode()
        info = struct.pack(">HB", size, len(name)) + name + b"\0"
        return HKDFExpand(self._hash, size, info).derive(self._secret)
