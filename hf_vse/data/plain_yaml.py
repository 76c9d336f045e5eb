"""YAML restricted to plain values, unique keys and a limited size.

PyYAML keeps the last of two equal keys, lets a few lines of aliases expand to billions of values, and reads 2e-4 as
text. Here the first two are errors, and 2e-4 is a number.
"""

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

MOST_VALUES = 10_000  # with aliases expanded
DEEPEST = 50  # levels of nested maps and lists
MERGE = "tag:yaml.org,2002:merge"
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
LINE_ENDS = re.compile("[\r\x85\u2028\u2029\ufeff]")
PLAIN = (str, int, float, bool, type(None))


class _Loader(yaml.SafeLoader):
    """Loader that reads 2e-4 as a number and limits the nesting depth."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper whose output `_Loader` reads back unchanged; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """Uses double quotes if another style would read a character as a line break."""
        style = '"' if LINE_ENDS.search(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def to_yaml(values: dict[str, Any]) -> str:
    """The YAML text of a map with sorted keys; `parse_yaml` restores the map."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=True, allow_unicode=True)


def parse_yaml(text: str, where: str) -> Any:
    """Parses a YAML text of maps, lists, text, numbers, true, false and null.

    Args:
        where: the location for error messages, such as a file or an option.

    Raises:
        ValueError: the text is not valid YAML or breaks a limit of this module; the message is one line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        count_values(node, {})
        value = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split()):.300}") from None
    check_plain(value, where)
    return value


def count_values(node: Node, known: dict[int, int]) -> int:
    """The number of values in a node with aliases expanded; also checks the keys of maps.

    Args:
        known: counts of visited nodes; 0 marks an unfinished node, so a node inside itself is detected.
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
        raise ValueError(f"{place}: more than {MOST_VALUES} values with aliases expanded")
    known[id(node)] = total
    return total


def check_keys(node: MappingNode) -> None:
    """Raises ValueError for a duplicate key, where PyYAML would keep the last."""
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != MERGE:
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r:.40} is a duplicate key")
            seen.add(key.value)


def check_plain(value: Any, where: str) -> None:
    """Raises ValueError for a date, bytes, a set, or a key that is not text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r:.60} is not text: put it in quotes, or use a known key")
            check_plain(inner, where)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, where)
    elif not isinstance(value, PLAIN):
        raise ValueError(
            f"{where}: {value!r:.60} is a {type(value).__name__}: put it in quotes if it is meant as text"
        )
    elif isinstance(value, str) and UNWRITABLE.search(value):
        raise ValueError(f"{where}: {value!r:.60} holds an invalid character (NUL or a surrogate): remove it")
