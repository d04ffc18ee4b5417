"""Keeps tokens whose signature was verified. To check such a token again takes little time.

Everything that can change (time, revocation, the state of the key, the demands) is checked after
each look-up.
"""

from threading import Lock
from typing import Final

from countersign._token import Token

# The memory of an entry, besides its texts: measured with tracemalloc, and rounded up.
_ENTRY_BYTES: Final = 1400


class VerifiedCache:
    """A bounded map of tokens by their SHA-256 digests.

    It consists of two generations. Tokens that are used are moved to the younger one. When that is
    full, the older one, with the tokens that were not used meanwhile, makes room for it.
    """

    __slots__ = ("_bytes", "_lock", "_older", "_room", "_younger")

    def __init__(self, capacity: int) -> None:
        """Creates a cache of about so many bytes. One of zero bytes keeps no tokens."""
        self._room = capacity // 2
        self._bytes = 0
        self._lock = Lock()
        self._younger: dict[bytes, Token] = {}
        self._older: dict[bytes, Token] = {}

    def get(self, digest: bytes) -> Token | None:
        """Returns the token with this digest, if it is kept."""
        token = self._younger.get(digest)
        if token is None:
            token = self._older.get(digest)
            if token is not None:
                self.insert(digest, token)
        return token

    def insert(self, digest: bytes, token: Token) -> None:
        """Adds a token."""
        # Decoded texts take about as much as the payload once more.
        size = _ENTRY_BYTES + 2 * len(token.payload)
        if size > self._room:
            return
        with self._lock:
            if digest in self._younger:
                return
            if self._bytes + size > self._room:
                self._older = self._younger
                self._younger = {}
                self._bytes = 0
            self._younger[digest] = token
            self._bytes += size

    def __len__(self) -> int:
        return len(self._younger.keys() | self._older.keys())
