"""What of a model directory is published, and in which words: no pickles, no checkpoints, no path of this machine.

A run leaves its record (`metrics.json`, `recipe.yaml`, pictures) next to the model. It is published with the model as
long as the weights are those it speaks of.
"""

import csv
import filecmp
import json
import logging
import os
import re
import struct
from collections.abc import Collection
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.utils import yaml_dump
from transformers import PreTrainedModel

from .card_text_vse import is_hub_id
from .card_vse import is_ours, model_card
from .configuration_vse import VSEConfig
from .files_vse import (
    MODEL_FILES,
    SECRET,
    SECRET_KEY,
    TEXTS,
    check_no_secret,
    code_in,
    files_in,
    json_in,
    text_in,
)

logger = logging.getLogger(__name__)

CARD, METRICS, RECIPE, PHOTOGRAPHS = "README.md", "metrics.json", "recipe.yaml", "retrieval.png"
EMISSIONS = "emissions.csv"
RECORD_FILES = (CARD, METRICS, RECIPE, "training_curves*.png", PHOTOGRAPHS)
GENERATED_DATA = "scenes"  # its pictures are nobody's photographs

NAME_KEYS = ("name_or_path", "_name_or_path", "dataset", "init_from", "image_tower", "text_tower", "model")
PATH_KEYS = ("split_file", "features", "image_tower_weights", "resume_from_checkpoint", "tokenizer_file", "vocab_file",
             "merges_file", "deepspeed", "fsdp_config")  # fmt: skip
PATH_INSIDE = re.compile(r"(?<![\w:/.~])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@-]+){2,}[/\\]?")
NAMES_IN_JSON = re.compile(r'("(?:_?name_or_path|tokenizer_file|vocab_file|merges_file)": )("(?:[^"\\]|\\.)*")')
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def file_name(path: str) -> str:
    return PureWindowsPath(path.rstrip("/\\")).name  # splits at both kinds of slashes


def without_paths(value: Any, key: str = "") -> Any:
    """A record without paths of this machine and without secrets; of a path its last part stays.

    A name that may be one of the Hub stays as it is, unless it is a path here.
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
    if key in PATH_KEYS or key.endswith("_dir"):
        return file_name(value)
    if value.startswith(("/", "~/")):
        return file_name(value)
    return PATH_INSIDE.sub(lambda found: file_name(found[0]), value)


def read_record(directory: Path) -> dict[str, Any]:
    """What a run left in its directory, fit to be published: `metrics.json`, and what codecarbon measured.

    Raises:
        ValueError: a file is a link, or holds something else.
    """
    record = without_paths(json_in(directory, METRICS))
    if "stages" not in record:  # the record of an evaluation, or of something else
        return {}
    grams = emissions_in(directory)
    if grams is not None:
        known = {"emissions": round(grams, 3), "source": "codecarbon", "training_type": "training"}
        where = record.get("environment")
        device = where.get("device") if isinstance(where, dict) else None
        record["co2_eq_emissions"] = known | ({"hardware_used": device} if device else {})
    return record


def emissions_in(directory: Path) -> float | None:
    """Grams of CO2 equivalents that codecarbon wrote down; None if it did not."""
    text = text_in(directory, EMISSIONS)
    if text is None:
        return None
    rows = csv.DictReader(text.splitlines())
    try:
        if "emissions" not in (rows.fieldnames or ()):
            raise ValueError("no column emissions")
        return sum(1000 * float(row["emissions"]) for row in rows)
    except (TypeError, ValueError, csv.Error) as error:
        what = f"{directory / EMISSIONS} is not what codecarbon writes"
        raise ValueError(f"{what} ({error!s:.60}): remove it") from error


def published_files(directory: Path, run: Path | None, photographs: bool = False) -> dict[str, Path]:
    """What is published of a model saved in `directory`, whose run left its record in `run`.

    Pictures with photographs in them are left out unless asked for: they belong to their owners.
    """
    files = files_in(directory, [each for each in MODEL_FILES if not each.endswith(".py")]) | code_in(directory)
    if run is not None:
        record = files_in(run, RECORD_FILES)
        shown = photographs or read_record(run).get("dataset") == GENERATED_DATA
        if not shown and record.pop(PHOTOGRAPHS, None):
            logger.info("%s shows photographs of the data set and is not published", PHOTOGRAPHS)
        files |= record | files_in(run, [each for each in MODEL_FILES if each.startswith("onnx/")])
    return files


def public_content(name: str, path: Path, record: dict[str, Any]) -> Path | bytes | None:
    """The file, or what is published in its place; None where there is nothing."""
    if name == METRICS:
        return json.dumps(record, indent=1).encode() if record else None
    if name == RECIPE:
        return yaml_dump(record["recipe"], sort_keys=True).encode() if record.get("recipe") else None
    if path.suffix not in TEXTS:
        return path
    text = text_in(path.parent, path.name) or ""
    check_no_secret(name, text)
    if not name.endswith("config.json"):
        return path
    clean = NAMES_IN_JSON.sub(lambda found: found[1] + json.dumps(without_paths(json.loads(found[2]), "model")), text)
    return path if clean == text else clean.encode()


def weight_files(directory: Path) -> list[Path]:
    return sorted(
        files_in(directory, [each for each in MODEL_FILES if "/" not in each and "safetensors" in each]).values()
    )


def count_parameters(directory: Path) -> int:
    """Numbers in the weights, read from the headers of the files."""
    count = 0
    for path in weight_files(directory):
        if path.suffix == ".safetensors":
            for name, tensor in tensors_in(path).items():
                size = 1
                for length in tensor["shape"]:
                    size *= length
                count += 0 if name.endswith(BUFFERS) else size
    return count


def tensors_in(path: Path) -> dict[str, dict]:
    """The header of a safetensors file: name -> dtype, shape and place of each tensor.

    Raises:
        ValueError: the file is cut off, or is none.
    """
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        size = path.stat().st_size
        try:
            header = json.loads(file.read(min(length, size)))
            tensors = {name: each for name, each in header.items() if name != "__metadata__"}
            end = max((each["data_offsets"][1] for each in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise ValueError(f"{path} is no safetensors file: save the model again") from None
    if 8 + length + end != size:
        raise ValueError(f"{path} is incomplete ({size:,} of {8 + length + end:,} bytes): save the model again")
    return tensors


def run_of(saved: Path, origin: str) -> Path | None:
    """The directory of the run that made the weights in `saved`: where the model was loaded from, if unchanged."""
    run = Path(origin) if origin else None
    if run is None or not run.is_dir() or not (run / METRICS).is_file():
        return None
    weights = weight_files(saved)
    if all((run / each.name).is_file() and filecmp.cmp(each, run / each.name, shallow=False) for each in weights):
        return run
    logger.warning("the weights are not those of %s any more: its metrics and pictures are not published", run)
    return None


def write_card(
    directory: Path, run: Path | None, repo_id: str, *, files: Collection[str] = (), license: str | None = None,
    tags: Collection[str] = ()
) -> str:  # fmt: skip
    """The text of the card for a saved model.

    Raises:
        ValueError: what lies beside it is no record of a run.
    """
    config, record = VSEConfig.from_pretrained(directory), {} if run is None else read_record(run)
    files, parameters = files or published_files(directory, run), count_parameters(directory)
    try:
        return model_card(
            config, record, files, repo_id=repo_id, num_parameters=parameters, license=license, tags=tags
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{run and run / METRICS} is not what a run writes ({error!r:.80})"
        raise ValueError(f"{what}: remove it, and the model is published without it") from error


def choose_card(there: str | None, own: str | None, written: str) -> str | None:
    """Which card to upload: one that a person wrote stays, in the repository first; None keeps what is `there`.

    Args:
        there: the text in the repository.
        own: the text next to the model.
        written: the text that would be written now.
    """
    if there is not None and not is_ours(there):
        if own != there:
            logger.warning(
                "the model card in the repository was changed by hand and is kept; remove it to get a new one"
            )
        return None
    return written if own is None or is_ours(own) else own


def public_contents(directory: Path, run: Path | None, photographs: bool = False) -> dict[str, Path | bytes]:
    """Everything that is published of a saved model but the card: name -> the file, or what takes its place.

    Raises:
        ValueError: something that nobody else should get, see `files_vse.py`, or what is no part of a model.
    """
    record = {} if run is None else read_record(run)
    files = published_files(directory, run, photographs)
    contents = {name: public_content(name, path, record) for name, path in files.items() if name != CARD}
    return {name: content for name, content in contents.items() if content is not None}


def own_card(directory: Path | None) -> str | None:
    """The card next to a model, if there is one.

    Raises:
        ValueError: it is a link, no text, or its header is no YAML, or it holds an access token.
    """
    text = None if directory is None else text_in(directory, CARD)
    if text is not None:
        check_no_secret(str(directory / CARD), text)
        try:
            ModelCard(text, ignore_metadata_errors=True)
        except Exception as error:  # of whichever library reads YAML
            raise ValueError(
                f"{directory / CARD} has a header that is no YAML: mend it, or remove the file"
            ) from error
    return text


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a link in its place is replaced, and what it leads to stays as it is."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def upload_operations(
    directory: Path,
    run: Path | None,
    repo_id: str,
    *,
    card_there: str | None,
    license: str | None = None,
    tags: Collection[str] = (),
    photographs: bool = False,
) -> list[CommitOperationAdd]:
    """Everything that is published of a saved model, the card included, as one commit."""
    contents = public_contents(directory, run, photographs)
    before = ModelCard(card_there, ignore_metadata_errors=True).data if card_there else None
    if before is not None:  # what a person or transformers added to the header stays
        license, tags = license or before.license, [*tags, *(before.tags or [])]
    own = own_card(run)
    written = write_card(directory, run, repo_id, files=contents, license=license, tags=tags)
    if (chosen := choose_card(card_there, own, written)) is not None:
        contents[CARD] = chosen.encode()
    return [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]


def upload_model(
    model: PreTrainedModel,
    saved: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """The last step of `push_to_hub`: uploads what `save_pretrained` wrote into `saved`, with card and record."""
    given = saved / CARD  # what transformers found in the repository, or its template
    there = own_card(saved)
    operations = upload_operations(saved, run_of(saved, model.name_or_path), repo_id, card_there=there)
    chosen = [each.path_or_fileobj for each in operations if each.path_in_repo == CARD]
    if chosen:  # the folder may be the user's own, where the template does not belong either
        replace_file(given, chosen[0])
    api = HfApi(token=token)
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message or "Upload model",
        commit_description=commit_description,
        create_pr=create_pr,
        revision=revision,
    )


__all__ = ["upload_model"]
