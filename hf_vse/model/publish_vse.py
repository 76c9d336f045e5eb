"""What of a model directory is published, and in which words: no pickles, no checkpoints, no path of this machine.

A run leaves its record (`metrics.json`, `recipe.yaml`, pictures) next to the model. It is published with the model as
long as the weights are those it speaks of.
"""

import csv
import filecmp
import json
import logging
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

logger = logging.getLogger(__name__)

CARD, METRICS, RECIPE, PHOTOGRAPHS = "README.md", "metrics.json", "recipe.yaml", "retrieval.png"
MODEL_FILES = (
    "config.json", "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "*_vse.py",
    "processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
    "[0-9]_*/*.json", "[0-9]_*/*.safetensors", "onnx/*.onnx", "onnx/*.onnx.data", "onnx/*.onnx_data", "onnx/*.json",
)  # fmt: skip
RECORD_FILES = (CARD, METRICS, RECIPE, "training_curves*.png", PHOTOGRAPHS)
GENERATED_DATA = "scenes"  # its pictures are nobody's photographs

NAME_KEYS = ("name_or_path", "_name_or_path", "dataset", "init_from", "image_tower", "text_tower", "model")
PATH_KEYS = ("split_file", "features", "image_tower_weights", "resume_from_checkpoint", "tokenizer_file", "vocab_file",
             "merges_file", "deepspeed", "fsdp_config")  # fmt: skip
SECRET_KEYS = ("token", "hub_token", "push_to_hub_token")
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
        return {name: without_paths(each, name) for name, each in value.items() if name not in SECRET_KEYS}
    if isinstance(value, list | tuple):
        return [without_paths(each, key) for each in value]
    if not isinstance(value, str):
        return value
    if key in NAME_KEYS:
        return value if is_hub_id(value) else file_name(value)
    if key in PATH_KEYS or key.endswith("_dir"):
        return file_name(value)
    if value.startswith(("/", "~/")):
        return file_name(value)
    return PATH_INSIDE.sub(lambda found: file_name(found[0]), value)


def read_record(directory: Path) -> dict[str, Any]:
    """What a run left in its directory, fit to be published: `metrics.json`, and what codecarbon measured."""
    path = directory / METRICS
    record = without_paths(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    if "stages" not in record:  # the record of an evaluation, or of something else
        return {}
    emissions = directory / "emissions.csv"
    if emissions.is_file():
        with emissions.open(encoding="utf-8", newline="") as file:
            grams = sum(1000 * float(row["emissions"]) for row in csv.DictReader(file))
        known = {"emissions": round(grams, 3), "source": "codecarbon", "training_type": "training"}
        device = record.get("environment", {}).get("device")
        record["co2_eq_emissions"] = known | ({"hardware_used": device} if device else {})
    return record


def files_in(directory: Path, patterns: Collection[str]) -> dict[str, Path]:
    """Name in the repository -> file."""
    found = {path.relative_to(directory).as_posix(): path for each in patterns for path in directory.glob(each)}
    return {name: path for name, path in sorted(found.items()) if path.is_file()}


def published_files(directory: Path, run: Path | None, photographs: bool = False) -> dict[str, Path]:
    """What is published of a model saved in `directory`, whose run left its record in `run`.

    Pictures with photographs in them are left out unless asked for: they belong to their owners.
    """
    files = files_in(directory, MODEL_FILES)
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
    if not name.endswith("config.json"):
        return path
    text = path.read_text(encoding="utf-8")
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
        except (ValueError, KeyError, TypeError, AttributeError):
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
    """The text of the card for a saved model."""
    return model_card(
        VSEConfig.from_pretrained(directory),
        {} if run is None else read_record(run),
        files or published_files(directory, run),
        repo_id=repo_id,
        num_parameters=count_parameters(directory),
        license=license,
        tags=tags,
    )


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
    files = published_files(directory, run, photographs)
    record = {} if run is None else read_record(run)
    contents = {name: public_content(name, path, record) for name, path in files.items() if name != CARD}
    contents = {name: content for name, content in contents.items() if content is not None}
    before = ModelCard(card_there, ignore_metadata_errors=True).data if card_there else None
    if before is not None:  # what a person or transformers added to the header stays
        license, tags = license or before.license, [*tags, *(before.tags or [])]
    own = files[CARD].read_text(encoding="utf-8") if CARD in files else None
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
    there = given.read_text(encoding="utf-8") if given.is_file() else None
    operations = upload_operations(saved, run_of(saved, model.name_or_path), repo_id, card_there=there)
    chosen = [each.path_or_fileobj for each in operations if each.path_in_repo == CARD]
    if chosen:  # the folder may be the user's own, where the template does not belong either
        given.write_bytes(chosen[0])
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
