"""Whether a whole model lies in a directory: asked before the first request."""

import logging
from pathlib import Path

import hf_vse.model
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.files import read_text
from hf_vse.hub.model_files import CLASS_HERE, INDEX, MODEL_FILES, WEIGHTS, code_in, files_in, json_in

logger = logging.getLogger(__name__)

CONFIG = "config.json"


def check_model_directory(directory: str | Path) -> Path:
    """The directory, if a whole model lies in it: one that is loaded and embeds, and that others can load.

    Raises:
        OSError: there is none, or a part of it is missing or cannot be read.
        ValueError: it holds something else, weights that do not fit the configuration, or links.
    """
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory: give the one that a run or save_pretrained wrote")
    if CONFIG not in files_in(path, MODEL_FILES):
        raise FileNotFoundError(f"{directory} holds no model (config.json is missing): give the output_dir of a run")
    VSEEncoder.from_pretrained(path, "cpu")
    check_weights_once(path)
    check_code(path)
    return path


def check_weights_once(directory: Path) -> None:
    """Raises ValueError where weights of an earlier save lie beside those that are loaded."""
    found = files_in(directory, [*WEIGHTS, INDEX]).keys()
    whole = {WEIGHTS[0]} & found
    used = whole or {INDEX, *json_in(directory, INDEX)["weight_map"].values()}
    if left := sorted(found - used):
        raise ValueError(f"{directory} holds weights twice, in {min(used)} and {left[0]}: remove the old ones")


def check_code(directory: Path) -> None:
    """Raises where code that the configurations name is not there; warns of code that is not that of this package."""
    classes = json_in(directory, CONFIG).get("auto_map")
    if not isinstance(classes, dict) or not classes:
        raise FileNotFoundError(
            f"{directory} lacks auto_map: save model and processor there again with save_pretrained"
        )
    for name in classes.values():
        if not isinstance(name, str) or not CLASS_HERE.fullmatch(name):
            raise ValueError(
                f"{directory / CONFIG}: auto_map has {name!r:.60}, no file.Class of this directory: save the model "
                "there again with save_pretrained"
            )
    own = Path(hf_vse.model.__file__).parent
    foreign = [
        name
        for name, path in code_in(directory).items()
        if not (own / name).is_file() or read_text(own / name) != read_text(path)
    ]
    if foreign:
        logger.warning(
            "%s: %s not the code of this version of hf_vse; whoever trusts the model runs it: read it first, or load "
            "the model with hf_vse and save it again",
            directory,
            f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'}",
        )
