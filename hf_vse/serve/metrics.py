"""Counters as text in the format of Prometheus, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """How many values are at most as large as each bound."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        """What follows the name of the metric in each of its lines."""
        below, lines = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            lines.append(f'_bucket{{le="{bound}"}} {below}')
        return [*lines, f"_sum {self.sum:.6f}", f"_count {below}"]


class ServerMetrics:
    """What the server has done since it started."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # (path, status)
        self.queries = 0
        self.in_flight = 0
        self.seconds = Histogram(SECONDS)
        self.batches = Histogram(SIZES)

    def text(self, items: int) -> str:
        requests = sorted(self.requests.items())
        answered = [f'_total{{path="{path}",status="{status}"}} {count}' for (path, status), count in requests]
        parts = (
            ("hf_vse_requests", "counter", "requests answered", answered),
            ("hf_vse_queries", "counter", "queries answered", [f"_total {self.queries}"]),
            ("hf_vse_in_flight", "gauge", "searches being read or answered", [f" {self.in_flight}"]),
            ("hf_vse_items", "gauge", "items of the gallery at the start", [f" {items}"]),
            ("hf_vse_search_seconds", "histogram", "from the head of a search to its answer", self.seconds.lines()),
            ("hf_vse_batch_size", "histogram", "queries answered together", self.batches.lines()),
        )
        lines = []
        for name, kind, what, values in parts:
            family = f"{name}_total" if kind == "counter" else name
            lines += [f"# HELP {family} {what}", f"# TYPE {family} {kind}", *(name + value for value in values)]
        return "\n".join(lines) + "\n"
