"""YAML of people: plain values alone, each key once, and no more of it than a person writes.

PyYAML takes the last of two equal keys, lets a few lines of aliases stand for billions of values, and reads 2e-4 as
text. Here the first two are errors, and the last is a number.
"""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_VALUES = 10_000  # aliases counted as often as they stand there
DEEPEST = 50  # levels of maps and lists
MERGE = "tag:yaml.org,2002:merge"
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
LINE_ENDS = re.compile("[\r\x85\u2028\u2029\ufeff]")
PLAIN = (str, int, float, bool, type(None))


class _Loader(yaml.SafeLoader):
    """YAML in which 2e-4 is a number, as everyone who writes a recipe expects, and nothing is nested without end."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was, every value where it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """In double quotes where another style would take a character for the end of a line."""
        style = '"' if LINE_ENDS.search(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def to_yaml(values: dict[str, Any]) -> str:
    """The text of a map, its keys in order; `parse_yaml` gives the map again."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=True, allow_unicode=True)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text: maps, lists, text, numbers, true, false and null.

    Args:
        where: how an error names the place: a file, an option.

    Raises:
        ValueError: no YAML, or one that no person wrote; one line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        count_values(node, {})
        value = loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split()):.300}") from None
    check_plain(value, where)
    return value


def count_values(node: Node, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out; checks the keys of maps on the way.

    Args:
        known: counts of the nodes visited before; of one that is not finished 0, which tells a node inside itself.
    """
    place = f"line {node.start_mark.line + 1}"
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError(f"{place}: a value that contains itself")
        return known[id(node)]
    known[id(node)] = 0
    children: list[Node] = []
    if isinstance(node, MappingNode):
        check_keys(node)
        children = [each for pair in node.value for each in pair]
    elif not isinstance(node, ScalarNode):
        children = node.value
    total = 1 + sum(count_values(child, known) for child in children)
    if total > MOST_VALUES:
        raise ValueError(f"{place}: more than {MOST_VALUES} values, aliases written out")
    known[id(node)] = total
    return total


def check_keys(node: MappingNode) -> None:
    """Raises ValueError where a key stands twice, of which PyYAML would take the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != MERGE:
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r:.40} stands here for the second time")
            seen.add(key.value)


def check_plain(value: Any, where: str) -> None:
    """Raises ValueError for a date, bytes, a set, or a key that is no text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r:.60} is no text: put it in quotes, or write a known key")
            check_plain(inner, where)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, where)
    elif not isinstance(value, PLAIN):
        raise ValueError(
            f"{where}: {value!r:.60} is a {type(value).__name__}: put it in quotes if it is meant as text"
        )
    elif isinstance(value, str) and UNWRITABLE.search(value):
        raise ValueError(f"{where}: {value!r:.60} holds a character that no name and no text can have: remove it")
