"""What is published of a model directory: no pickles, no checkpoints, no local paths, no secrets.

A run leaves its record (`metrics.json`, `recipe.yaml`, plots) next to the model. It is published with the model if it
belongs to these weights.
"""

import json
import logging
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, ModelCard
from huggingface_hub.utils import yaml_dump
from jinja2 import UndefinedError

from hf_vse.embed.stored import read_tensor_header
from hf_vse.hub.card import model_card
from hf_vse.hub.exported import Exported
from hf_vse.hub.model_files import MODEL_FILES, code_in, files_in, real_file, text_in, weight_files
from hf_vse.hub.private import check_no_secret, without_paths
from hf_vse.hub.record import METRICS, RECIPE, read_record
from hf_vse.hub.signature import is_ours
from hf_vse.model.configuration_vse import VSEConfig

logger = logging.getLogger(__name__)

CARD, PHOTOGRAPHS = "README.md", "retrieval.png"
RECORD_FILES = (CARD, METRICS, RECIPE, "training_curves*.png", PHOTOGRAPHS)
GENERATED_DATA = "scenes"  # its images are not photographs
TEXTS = (".json", ".md", ".yaml", ".py", ".txt")
NAMES_IN_JSON = re.compile(r'("(?:_?name_or_path|tokenizer_file|vocab_file|merges_file)": )("(?:[^"\\]|\\.)*")')
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def published_files(directory: Path, run: Path | None, photographs: bool = False) -> dict[str, Path]:
    """What is published of a model saved in `directory`, whose run left its record in `run`.

    The plot that shows photographs is left out unless asked for: photographs belong to their owners.
    """
    files = files_in(directory, [each for each in MODEL_FILES if not each.endswith(".py")]) | code_in(directory)
    if run is not None:
        record = files_in(run, RECORD_FILES)
        shown = photographs or read_record(run).get("dataset") == GENERATED_DATA
        if not shown and PHOTOGRAPHS in record:
            del record[PHOTOGRAPHS]
            logger.info("%s shows photographs of the data set and is not published", PHOTOGRAPHS)
        files |= record | files_in(run, [each for each in MODEL_FILES if each.startswith("onnx/")])
    return files


def public_content(name: str, path: Path, record: dict[str, Any]) -> Path | bytes | None:
    """The file, or its replacement; None if nothing is published."""
    if name == METRICS:
        return json.dumps(record, indent=1).encode() if record else None
    if name == RECIPE:
        return yaml_dump(record["recipe"], sort_keys=True).encode() if record.get("recipe") else None
    if path.suffix not in TEXTS:
        return path
    text = text_in(path.parent, path.name) or ""
    check_no_secret(path, text)
    if not name.endswith("config.json"):
        return path
    clean = NAMES_IN_JSON.sub(lambda found: found[1] + json.dumps(without_paths(json.loads(found[2]), "model")), text)
    return path if clean == text else clean.encode()


def public_contents(directory: Path, run: Path | None, photographs: bool = False) -> dict[str, Path | bytes]:
    """Everything that is published of a saved model except the card: name -> the file, or its replacement.

    Raises:
        ValueError: a file contains a secret, is a symbolic link, or is not part of a model.
    """
    record = {} if run is None else read_record(run)
    files = published_files(directory, run, photographs)
    contents = {name: public_content(name, path, record) for name, path in files.items() if name != CARD}
    return {name: content for name, content in contents.items() if content is not None}


def contents_of(
    directory: Path, run: Path | None, photographs: bool = False, exported: Exported | None = None
) -> dict[str, Path | bytes]:
    """What is published of a model, beside its card: its own files, or those of an exported model and nothing else."""
    return public_contents(directory, run, photographs) if exported is None else exported_contents(exported.folder)


def exported_contents(folder: Path) -> dict[str, Path | bytes]:
    """Everything of a folder that `export_model` wrote; see `public_contents`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    files = {path.relative_to(folder).as_posix(): real_file(folder, path) for path in paths}
    contents = {name: public_content(name, path, {}) for name, path in files.items()}
    return {name: content for name, content in contents.items() if content is not None}


def write_card(
    directory: Path, run: Path | None, repo_id: str, *, files: Collection[str] = (), license: str | None = None,
    tags: Collection[str] = (), exported: Exported | None = None
) -> str:  # fmt: skip
    """The text of the card for a saved model.

    Raises:
        ValueError: the file beside it is not a record of a run.
    """
    config, record = VSEConfig.from_pretrained(directory), {} if run is None else read_record(run)
    files = files or published_files(directory, run)
    weights = weight_files(directory) if exported is None else exported.folder.glob("*.safetensors")
    tensors = {name: tensor for path in weights for name, tensor in read_tensor_header(path).items()}
    parameters = sum(math.prod(tensor.shape) for name, tensor in tensors.items() if not name.endswith(BUFFERS))
    try:
        return model_card(
            config, record, files, repo_id=repo_id, num_parameters=parameters, license=license, tags=tags,
            exported=exported,
        )  # fmt: skip
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, UndefinedError) as error:
        what = f"{run and run / METRICS} is not what a run writes ({error!r:.80})"
        raise ValueError(f"{what}: remove it, and the model is published without it") from error


def own_card(directory: Path | None) -> str | None:
    """The card next to a model, if there is one.

    Raises:
        ValueError: it is a link, not text, or its header is not valid YAML, or it holds an access token.
    """
    if directory is None:
        return None
    text = text_in(directory, CARD)
    if text is not None:
        check_no_secret(directory / CARD, text)
        try:
            ModelCard(text, ignore_metadata_errors=True)
        except Exception as error:  # each YAML library raises its own
            raise ValueError(
                f"{directory / CARD} has a header that is not valid YAML: correct it, or remove the file"
            ) from error
    return text


def choose_card(there: str | None, own: str | None, written: str) -> str | None:
    """Which card to upload. A card that a person wrote stays, first of all that in the repository.

    Args:
        there: the text in the repository.
        own: the text next to the model.
        written: the text that would be written now.

    Returns:
        None where the card in the repository stays.
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
    exported: Exported | None = None,
) -> list[CommitOperationAdd]:
    """Everything that is published of a saved model, the card included, as one commit.

    Of an exported model these are its files and a card for its format; a card beside the model speaks of another one.
    """
    contents = contents_of(directory, run, photographs, exported)
    before: Any = ModelCard(card_there, ignore_metadata_errors=True).data if card_there else None
    if before is not None:  # what a person or transformers added to the header stays
        license, tags = license or before.license, [*tags, *(before.tags or [])]
    own = own_card(run) if exported is None else None
    written = write_card(directory, run, repo_id, files=contents, license=license, tags=tags, exported=exported)
    if (chosen := choose_card(card_there, own, written)) is not None:
        contents[CARD] = chosen.encode()
    return [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]
