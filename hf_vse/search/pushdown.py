"""What an engine is given of an item, so that its own filters mean what `filters.py` says.

Engines cannot lower the case of a text as Python does, look into lists, or tell the number 5 from the text "5". So the
work is done when an item is stored. Of every field that can be asked:

    is           digests of its entries, as a number, a text or a truth: `=` asks whether one of them is there
    count, key   how many different ones, and a digest of all: `!=` asks whether they are others than only equal ones
    low, high    the least and greatest number: some entry is > x exactly if the greatest is
    first, last  the same of its texts
    text         its texts in lower case: `~` asks whether it contains one

No value of a user has to be quoted in these, except `first` and `last`.
"""

import re
from collections.abc import Iterable
from hashlib import blake2b
from itertools import combinations
from typing import Any

from hf_vse.search.filters import TRUTH, as_number, entries_of, entry_kind, number_of, text_of

FIELD = re.compile(r"[\w.-]+")
LARGEST = 2**63
# Characters with a meaning in LIKE or in a quoted text, and those that JSON escapes, moved to a private place.
MOVED = {code: 0xE000 + code for code in (*range(32), *map(ord, "%_\\\"'"))}
BETWEEN = chr(0xE000 + 127)  # entries of a list


def known_of(item: Any) -> dict[str, dict[str, Any]]:
    """See above; no field for an item that is no object."""
    known = {}
    for field, value in item.items() if isinstance(item, dict) else ():
        entries = list(entries_of(value))
        if not entries or not FIELD.fullmatch(field):
            continue
        marks = sorted({mark(entry) for entry in entries})
        folded = BETWEEN.join(folded_text(text_of(entry)) for entry in entries)
        known[field] = {"is": marks, "count": len(marks), "key": joint_mark(marks), "text": folded}
        if numbers := [number for entry in entries if (number := number_of(entry)) is not None]:
            known[field] |= {"low": storable_number(min(numbers)), "high": storable_number(max(numbers))}
        if texts := [entry for entry in entries if isinstance(entry, str)]:
            known[field] |= {"first": storable_text(min(texts)), "last": storable_text(max(texts))}
    return known


def mark(entry: Any) -> str:
    """Equal for entries that are equal, and only for them."""
    kind = entry_kind(entry)
    if kind == "number":
        number = number_of(entry)
        return digest_of_text(f"number {int(number) if number is not None and number == int(number) else number!r}")
    return digest_of_text(f"{'truth' if kind == 'truth' else 'text'} {text_of(entry)}")


def equal_marks(value: str) -> list[str]:
    """Marks of all entries that `= value` finds: a text, and perhaps a number or a truth."""
    same = [value, as_number(value), TRUTH.get(value.lower())]
    return sorted({mark(entry) for entry in same if entry is not None})


def equal_keys(value: str) -> list[str]:
    """Keys of all fields whose entries are all equal to a value."""
    marks = equal_marks(value)
    return [joint_mark(some) for size in range(1, len(marks) + 1) for some in combinations(marks, size)]


def joint_mark(marks: Iterable[str]) -> str:
    return digest_of_text(" ".join(marks))


def folded_text(text: str) -> str:
    return storable_text(text.lower().translate(MOVED))


def storable_text(text: str) -> str:
    """As UTF-8 can hold it, and without the zero byte."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\1")


def storable_number(number: int | float) -> int | float:
    return number if -LARGEST <= number < LARGEST else float(number)


def digest_of_text(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
