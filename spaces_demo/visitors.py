"""Images that visitors add for their own searches.

They are kept only in memory, separately for each visitor, and deleted when the visitor leaves.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from limits import MAX_PICTURES, RefusedError

MAX_VISITORS = 500  # visitors with images; beyond this, the images of the least recently active visitor are deleted
MAX_BYTES = 256 * 2**20  # of all images; beyond this, the same
SECONDS_TO_KEEP = 3600


@dataclass(frozen=True)
class Picture:
    thumbnail: bytes
    embed: np.ndarray = field(repr=False)


class Visitors:
    """Images by session. A session is a random name that only the visitor's browser knows."""

    def __init__(self, clock=time.monotonic):
        self._pictures: OrderedDict[str, tuple[float, list[Picture]]] = OrderedDict()
        self._lock = Lock()
        self._clock = clock

    def pictures(self, session: str | None) -> list[Picture]:
        with self._lock:
            self._forget_old()
            if session is None or session not in self._pictures:
                return []
            _, mine = self._pictures[session]
            self._keep(session, mine)
            return list(mine)

    def room(self, session: str | None) -> int:
        """Number of images that the visitor may still add."""
        return MAX_PICTURES - len(self.pictures(session))

    def add(self, session: str | None, pictures: list[Picture]) -> list[Picture]:
        """Adds images and returns all images of the visitor; RefusedError if there would be too many."""
        if session is None:
            raise RefusedError("Pictures can only be added in a browser.")
        with self._lock:
            self._forget_old()
            mine = [*self._pictures.get(session, (0, []))[1], *pictures]
            if len(mine) > MAX_PICTURES:
                raise RefusedError(f"{len(mine)} pictures are too many: at most {MAX_PICTURES}, please.")
            self._keep(session, mine)
            while len(self._pictures) > MAX_VISITORS or (len(self._pictures) > 1 and self._bytes() > MAX_BYTES):
                self._pictures.popitem(last=False)
            return list(mine)

    def forget(self, session: str | None) -> int:
        """Deletes the images of the visitor and returns their number."""
        if session is None:
            return 0
        with self._lock:
            return len(self._pictures.pop(session, (0, []))[1])

    def _keep(self, session: str, pictures: list[Picture]) -> None:
        self._pictures[session] = (self._clock(), pictures)
        self._pictures.move_to_end(session)

    def _bytes(self) -> int:
        return sum(len(each.thumbnail) + each.embed.nbytes for _, mine in self._pictures.values() for each in mine)

    def _forget_old(self) -> None:
        oldest = self._clock() - SECONDS_TO_KEEP
        while self._pictures and next(iter(self._pictures.values()))[0] < oldest:
            self._pictures.popitem(last=False)
