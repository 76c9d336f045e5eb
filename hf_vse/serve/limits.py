"""What a request may ask for. Everything above is refused in one line, before it takes memory or time."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        k: results for each query.
        text: characters of a sentence, and of a condition.
        queries: sentences of one request.
        conditions: of one request.
        image_bytes: of the file of a photograph.
        image_pixels: of a photograph.
        queue: requests that are read, wait or are answered at a time.
        timeout: seconds from the head of a request to its answer.
    """

    k: int = 100
    text: int = 1000
    queries: int = 32
    conditions: int = 16
    image_bytes: int = 10 * 2**20
    image_pixels: int = 40_000_000
    queue: int = 128
    timeout: float = 10.0

    @property
    def body_bytes(self) -> int:
        """Of a whole request: its texts as UTF-8 in percent-encoding, its photograph, and the frames of a form."""
        return self.image_bytes + 12 * self.text * (self.queries + self.conditions) + 2**16


class RefusedRequest(Exception):
    """A request that its sender can repair: the status of HTTP, and one line with field, value and remedy."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status
