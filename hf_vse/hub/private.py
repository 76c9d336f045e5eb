"""What is never published: access tokens and other secrets, and paths of this machine."""

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from hf_vse.files import parse_json

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
SECRET_KEY = re.compile(r"^token$|(hub|hf|auth|access|api)_?token$|secret|password|api_?key", re.IGNORECASE)
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
NAME_KEYS = ("name_or_path", "_name_or_path", "dataset", "init_from", "image_tower", "text_tower", "model")
PATH_KEYS = ("split_file", "features", "image_tower_weights", "resume_from_checkpoint", "tokenizer_file", "vocab_file",
             "merges_file", "deepspeed", "fsdp_config")  # fmt: skip
PATH_INSIDE = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@-]+){2,}[/\\]?")


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be an id on the Hub and is not a local path."""
    return name is not None and HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def file_name(path: str) -> str:
    return PureWindowsPath(path.rstrip("/\\")).name  # splits at both kinds of slashes


def without_paths(value: Any, key: str = "") -> Any:
    """A record without paths of this machine and without secrets; the last part of a path stays.

    A name that can be an id on the Hub stays as it is, unless it is a local path.
    """
    if isinstance(value, dict):
        return {name: without_paths(each, name) for name, each in value.items() if not SECRET_KEY.search(name)}
    if isinstance(value, list | tuple):
        return [without_paths(each, key) for each in value]
    if not isinstance(value, str):
        return value
    value = SECRET.sub("", value)
    if key in NAME_KEYS:
        return value if is_hub_id(value) else file_name(value)
    if key in PATH_KEYS or key.endswith("_dir") or value.startswith(("/", "~/")):
        return file_name(value)
    return PATH_INSIDE.sub(lambda found: file_name(found[0]), value)


def entries(value: Any) -> list[tuple[str, Any]]:
    """Every key of a JSON value with its content, at any depth."""
    if isinstance(value, list):
        return [entry for each in value for entry in entries(each)]
    if not isinstance(value, dict):
        return []
    return [entry for key, each in value.items() for entry in [(key, each), *entries(each)]]


def check_no_secret(name: str | Path, text: str) -> None:
    """Raises ValueError if a text to be published contains a secret."""
    if found := SECRET.search(text):
        raise ValueError(f"{name} holds what looks like an access token ({found[0][:6]}...): remove it, and revoke it")
    if Path(name).suffix == ".json":
        for key, value in entries(parse_json(text, name)):
            if isinstance(value, str) and value and SECRET_KEY.search(key):
                raise ValueError(f"{name} holds a secret, the value of {key!r}: remove it")
