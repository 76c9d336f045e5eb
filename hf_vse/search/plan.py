"""The kind of index for a gallery, chosen from its size and the available memory, with the reason in words.

    exact   every vector is compared; up to `EXACT_VALUES` numbers, where a query takes some milliseconds
    hnsw    a graph of neighbours that a query walks along (Malkov & Yashunin, arXiv 1603.09320); up to
            `GRAPH_VECTORS`, where it is the fastest to build and to query
    ivf     vectors in cells around centroids, of which a query visits the nearest (Sivic & Zisserman, ICCV 2003)
    pq      cells of product-quantised vectors (Jegou et al., TPAMI 2011), the best compared again with the exact ones,
            which stay on disk: where the vectors do not fit into memory

All kinds except `exact` miss some neighbours. Their recall is measured when the index is built.
"""

import math
import os
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from typing import Any, Literal, cast, get_args

IndexKind = Literal["exact", "ivf", "hnsw", "pq"]

EXACT_VALUES = 32_000_000  # 62,500 vectors of 512
GRAPH_VECTORS = 500_000
MEMORY_SHARE = 0.5
NEIGHBOURS = 32
CODES = 256  # values of a byte
CODE_VALUES = 8  # values of a vector that share one byte of its code
RERANK = 20  # candidates compared exactly for every result of a quantised index, at first


@dataclass(frozen=True)
class Plan:
    """How a gallery is searched.

    Args:
        kind: see above.
        factory: what `faiss.index_factory` makes of it; empty for `exact`.
        reason: why this kind.
        effort: cells a query visits (`ivf`, `pq`), or nodes it keeps (`hnsw`); found by measuring.
        recall: share of the ten exact nearest neighbours that are found, measured.
        measured_on: on which queries.
        rerank: candidates of `pq` that are compared exactly for every result; found by measuring.
    """

    kind: IndexKind
    factory: str
    reason: str
    effort: int = 0
    recall: float | None = None
    measured_on: str = ""
    rerank: int = RERANK

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_dict(cls, values: dict[str, Any], where: str) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or no value of its kind; the line begins with `where`.
        """
        names = {field.name for field in fields(cls)}
        values = {"rerank": RERANK} | values  # which galleries of before do not say
        if wrong := names ^ values.keys():
            state = "unknown" if wrong - names else "missing"
            raise ValueError(f"{where}: {', '.join(sorted(wrong - names or wrong))} {state}; it has {sorted(names)}")
        for name, value in values.items():
            if name == "kind":
                right = value in get_args(IndexKind)
            elif name in ("effort", "rerank"):
                right = isinstance(value, int) and not isinstance(value, bool) and value >= (name == "rerank")
            elif name == "recall":
                right = value is None or (type(value) in (int, float) and 0 <= value <= 1)
            else:
                right = isinstance(value, str)
            if not right:
                raise ValueError(f"{where}.{name} is {value!r:.60}, which is not a {name} of a plan")
        return cls(**values)

    def measured(self, effort: int, recall: float, measured_on: str) -> "Plan":
        return replace(self, effort=effort, recall=round(recall, 4), measured_on=measured_on)

    def __str__(self) -> str:
        found = "" if self.recall is None else f", recall@10 {self.recall:.3f} on {self.measured_on}"
        return f"{self.kind}{f' ({self.factory}, effort {self.effort})' if self.factory else ''}: {self.reason}{found}"


def choose_plan(count: int, dim: int, kind: str = "auto", memory: int | None = None) -> Plan:
    """The plan for `count` vectors of `dim`.

    Args:
        kind: `auto`, or one of `IndexKind`.
        memory: bytes that the index may take; default: half of this machine's.
    """
    if kind not in ("auto", *get_args(IndexKind)):
        raise ValueError(f"index kind must be auto, {', '.join(get_args(IndexKind))}; got {kind!r}")
    memory = int(MEMORY_SHARE * physical_memory()) if memory is None else memory
    reason = "asked for"
    if kind == "auto":
        size = f"{count:,} vectors of {dim}"
        if count * dim <= EXACT_VALUES:
            kind, reason = "exact", f"{size} are compared in milliseconds"
        elif not find_spec("faiss"):
            kind, reason = "exact", f"{size} would be found faster with FAISS: pip install 'hf_vse[index]'"
        elif 4 * count * dim > memory:
            kind, reason = "pq", f"{size} take {4 * count * dim / 2**30:.1f} GiB, more than {memory / 2**30:.1f}"
        elif count <= GRAPH_VECTORS:
            kind, reason = "hnsw", f"{size} are too many to compare all"
        else:
            kind, reason = "ivf", f"{size} are too many for a graph, and fit into memory"
    if kind == "pq" and count < CODES:
        raise ValueError(f"index kind 'pq' needs at least {CODES} vectors to learn from, got {count}: use 'exact'")
    cells = max(1, min(2 ** round(math.log2(4 * math.sqrt(count))), count // 4))
    lists = f"IVF{cells}" + ("_HNSW32" if cells > 2**14 else "")
    factory = {
        "exact": "",
        "ivf": f"{lists},Flat",
        "hnsw": f"HNSW{NEIGHBOURS},Flat",
        "pq": f"{lists},PQ{code_bytes(dim)}np",  # no polysemous codes, which are slow to train and not used
    }
    return Plan(cast(IndexKind, kind), factory[kind], reason)


def bytes_on_disk(plan: Plan, count: int, dim: int) -> int:
    """Minimum size of a gallery: its vectors, and the copy that the index stores."""
    return 4 * count * dim * (2 if plan.kind in ("hnsw", "ivf") else 1)


def code_bytes(dim: int) -> int:
    """Bytes per code: the divisor of `dim` nearest to `dim / 8`, because each byte encodes equally many values."""
    divisors = [size for size in range(1, dim + 1) if dim % size == 0]
    return min(divisors, key=lambda size: abs(size - dim / CODE_VALUES))


def physical_memory() -> int:
    """Bytes of memory of this machine; 8 GiB if it cannot be determined."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 * 2**30
