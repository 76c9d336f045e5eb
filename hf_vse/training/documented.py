"""Fields of a recipe, read from the signature or the configuration class that they set, and its docstring.

Imports the standard library alone: the help of a command is printed without any other.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import Field, field, fields
from functools import reduce
from inspect import cleandoc, signature
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")
PLAIN = (str, int, float, bool, dict, list, NoneType)  # what YAML holds

FieldSpec = tuple[str, Any, Field]  # as `dataclasses.make_dataclass` takes it


def documented(docstring: str | None) -> dict[str, str]:
    """The text of each argument in the section `Args` of a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in cleandoc(docstring or "").partition("\nArgs:\n")[2].splitlines():
        if entry := ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith(" " * 8):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found


def documented_in(path: Path, function: str) -> dict[str, str]:
    """The same for a function of a file that is not imported."""
    [found] = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    return documented(ast.get_docstring(found))


def recipe_type(kind: Any) -> Any:
    """The values of a type that YAML can hold; words from a list are text, and whole numbers are floats too."""
    given = get_args(kind) if isinstance(kind, UnionType) or get_origin(kind) is Union else (kind,)
    kinds = [str if get_origin(each) is Literal else each for each in given]
    plain = [each for each in kinds if (get_origin(each) or each) in PLAIN and not (each is int and float in kinds)]
    return reduce(or_, plain)


def recipe_field(name: str, kind: Any, default: Any, text: str) -> FieldSpec:
    text = text if text.startswith("`") else text[:1].upper() + text[1:]
    return name, recipe_type(kind), field(default=default, metadata={"help": text.replace("`", "")})


def fields_of_function(function: Callable, leave_out: tuple[str, ...] = ()) -> list[FieldSpec]:
    """Its keyword arguments, with their defaults."""
    texts = documented(function.__doc__)
    options = [item for item in signature(function).parameters.values() if item.kind is item.KEYWORD_ONLY]
    return [
        recipe_field(item.name, item.annotation, item.default, texts.get(item.name, ""))
        for item in options
        if item.name not in leave_out
    ]


def fields_of_config(config: type, base: type, leave_out: tuple[str, ...] = ()) -> list[FieldSpec]:
    """The fields of a configuration that its base class does not have; None stands for its default."""
    texts = documented(config.__doc__)
    known = {item.name for item in fields(base)} | set(leave_out)
    kinds: dict[str, Any] = {item.name: item.type for item in fields(config) if item.name not in known}
    return [
        recipe_field(name, kind | None, None, with_choices(texts.get(name, ""), kind)) for name, kind in kinds.items()
    ]


def with_choices(text: str, kind: Any) -> str:
    """A text that names the words a field takes, where it does not yet."""
    words = [str(word) for word in get_args(kind)] if get_origin(kind) is Literal else []
    if all(re.search(rf"\b{re.escape(word)}\b", text) for word in words):
        return text
    return f"{text.removesuffix('.')}: {', '.join(words)}."
