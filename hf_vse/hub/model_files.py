"""Which files of a directory belong to a model: by their names, and the code that its configurations name.

- Symbolic links are refused: only files of the directory itself are published.
- Of the Python files only the code of the model belongs to it: the files that the configurations name (`auto_map`, the
  list of modules of sentence-transformers), and the files next to them that they import.
"""

import ast
import os
import re
import stat
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_vse.files import parse_json, read_text
from hf_vse.hub.private import entries

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
INDEX, MODULES = "model.safetensors.index.json", "modules.json"
MODEL_FILES = (
    *WEIGHTS, INDEX, MODULES, "config.json", "*_vse.py", "processor_config.json", "preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*/*.json", "[0-9]_*/*.safetensors",
    "onnx/*.onnx", "onnx/*.onnx.data", "onnx/*.onnx_data", "onnx/*.json",
)  # fmt: skip
NAME_CODE = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json", MODULES)
CLASS_HERE = re.compile(r"(\w+)\.\w+")  # a file of the directory and a class in it; a package has more dots


def real_file(directory: Path, path: Path) -> Path:
    """The path of a file that lies in the directory itself.

    Raises:
        ValueError: it is a symbolic link, or in a folder that is one, or not a file.
    """
    inside = path.relative_to(directory)
    for step in [inside, *inside.parents][:-1]:
        if (directory / step).is_symlink():
            raise ValueError(f"{directory / step} is a link: replace it by a copy of the file")
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError(f"{path} is not a file: remove it, or save the model there again")
    return path


def files_in(directory: Path, patterns: Collection[str]) -> dict[str, Path]:
    """Name in the repository -> file; see `real_file`."""
    found = {path.relative_to(directory).as_posix(): path for each in patterns for path in directory.glob(each)}
    return {name: real_file(directory, path) for name, path in sorted(found.items())}


def text_in(directory: Path, name: str) -> str | None:
    """The text of a file of the directory; None if there is none.

    Raises:
        ValueError: it is not a file of the directory, or not UTF-8.
    """
    path = directory / name
    return read_text(real_file(directory, path)) if os.path.lexists(path) else None


def json_in(directory: Path, name: str, kind: type = dict) -> Any:
    """The value of a JSON file of the directory; an empty one of its kind if there is none.

    Raises:
        ValueError: it is not a file of the directory, not JSON, or of another kind.
    """
    text = text_in(directory, name)
    return kind() if text is None else parse_json(text, directory / name, kind)


def weight_files(directory: Path) -> list[Path]:
    return list(files_in(directory, WEIGHTS).values())


def classes_named(directory: Path) -> set[str]:
    """Classes, as `module.Class`, that the configurations name."""
    named: list[Any] = []
    for name in NAME_CODE:
        found = entries(json_in(directory, name, list if name == MODULES else dict))
        named += [value for key, value in found if key == "type" and name == MODULES]
        maps = [value for key, value in found if key == "auto_map" and isinstance(value, dict)]
        named += [each for classes in maps for each in classes.values()]
    flat = [each for value in named for each in (value if isinstance(value, list) else [value])]
    return {each for each in flat if isinstance(each, str)}


parse = lru_cache(maxsize=32)(ast.parse)  # a card and an upload each look at the same files


def parsed_code(path: Path, text: str) -> ast.Module:
    if not text.endswith("\n"):
        raise ValueError(f"{path} ends within a line: save the model there again, or end the file with a line break")
    try:
        return parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not Python code ({error!s:.80}): save the model there again") from error


def code_in(directory: Path) -> dict[str, Path]:
    """The code of the model: name -> file.

    Raises:
        ValueError: a file is not Python code, lacks the class that a configuration names, or is missing.
    """
    classes = [each.split(".") for each in sorted(classes_named(directory)) if CLASS_HERE.fullmatch(each)]
    wanted: list[tuple[str, str, str | None]] = [(module, "a configuration", name) for module, name in classes]
    code: dict[str, ast.Module] = {}
    while wanted:
        module, by, class_name = wanted.pop()
        file = f"{module}.py"
        if file not in code:
            text = text_in(directory, file)
            if text is None:
                raise ValueError(f"{directory} lacks {file}: save model and processor there again ({by} names it)")
            code[file] = parsed_code(directory / file, text)
            siblings = [each for each in ast.walk(code[file]) if isinstance(each, ast.ImportFrom) and each.level == 1]
            wanted += [((each.module or each.names[0].name).partition(".")[0], file, None) for each in siblings]
        defined = {node.name for node in code[file].body if isinstance(node, ast.ClassDef)}
        if class_name is not None and class_name not in defined:
            raise ValueError(f"{directory / file} has no class {class_name}, which {by} names: save the model again")
    return {file: directory / file for file in sorted(code)}
