"""Whether a whole model lies in a directory: asked before the first request, without reading the weights.

The configuration must build a model whose tensors are those in the headers of the weights. That model is built on the
meta device, where a tensor has a shape and no memory, so that impossible sizes cost nothing.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import hf_vse.model
from hf_vse.files import read_text
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.files_vse import CLASS_HERE, code_in, files_in, json_in
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.model.publish_vse import tensors_in, weight_files

logger = logging.getLogger(__name__)

CONFIG, PROCESSOR, INDEX = "config.json", "processor_config.json", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def check_model_directory(directory: str | Path) -> Path:
    """The directory, if a whole model lies in it.

    Raises:
        FileNotFoundError: there is none, or a part of it is missing.
        ValueError: it holds something else, weights that are cut off or do not fit the configuration, or links.
    """
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} is no directory: give the one that a run or save_pretrained wrote")
    if CONFIG not in files_in(path, [CONFIG]):
        raise FileNotFoundError(f"{directory} holds no model (config.json is missing): give the output_dir of a run")
    values = json_in(path, CONFIG)
    if values.get("model_type") != VSEConfig.model_type:
        raise ValueError(
            f"{path / CONFIG} has model_type {values.get('model_type')!r:.60}, not {VSEConfig.model_type!r}: "
            "give a VSEModel"
        )
    check_weights(path)
    check_code(path, values)
    check_fit(path)
    return path


def check_weights(directory: Path) -> None:
    """Raises where the safetensors weights are not there or not whole; reads headers only."""
    files = weight_files(directory)
    if not files:
        pickled = ", ".join(sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED))
        found = f"only {pickled}, which may run code when it is loaded" if pickled else "no weights"
        raise FileNotFoundError(f"{directory} holds {found}: save the model with save_pretrained, as safetensors")
    shards = json_in(directory, INDEX).get("weight_map", {})
    if not isinstance(shards, dict):
        raise ValueError(f"{directory / INDEX}: weight_map is no object {{...}}: save the model again")
    if missing := sorted({str(name) for name in shards.values()} - {path.name for path in files}):
        raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}: save the model again")
    seen: dict[str, str] = {}
    for path in files:
        for name in tensors_in(path) if path.suffix == ".safetensors" else ():
            if name in seen:
                raise ValueError(
                    f"{directory} holds {name} twice, in {seen[name]} and {path.name}: remove the old one"
                )
            seen[name] = path.name


def check_code(directory: Path, config: dict[str, Any]) -> None:
    """Raises where code that the configurations name is not there; says which of it is not that of this package."""
    classes = config.get("auto_map")
    if not isinstance(classes, dict) or not classes or PROCESSOR not in files_in(directory, [PROCESSOR]):
        what = PROCESSOR if classes else "auto_map"
        raise FileNotFoundError(f"{directory} lacks {what}: save model and processor there again with save_pretrained")
    for name in classes.values():
        if not isinstance(name, str) or not CLASS_HERE.fullmatch(name):
            raise ValueError(
                f"{directory / CONFIG}: auto_map has {name!r:.60}, no file.Class of this directory: save the model "
                "there again with save_pretrained"
            )
    own = Path(hf_vse.model.__file__).parent
    code = code_in(directory)
    foreign = [
        name for name, path in code.items() if not (own / name).is_file() or read_text(own / name) != read_text(path)
    ]
    if foreign:
        logger.warning(
            "%s: %s not the code of this version of hf_vse; whoever trusts the model runs it: read it first",
            directory,
            f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'}",
        )


@contextmanager
def refused_by_library(directory: Path, what: str) -> Iterator[None]:
    """Around code of transformers that reads what it may not be able to read.

    Raises:
        ValueError: it could not; one line says what.
    """
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        logger.warning("%s is not checked: %s", what, " ".join(str(error).split())[:200])
    except Exception as error:  # transformers and tokenizers raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{directory}: {what} cannot be loaded ({reason}): save it there again") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def check_fit(directory: Path) -> None:
    """Raises ValueError where configuration, weights and tokenizer do not belong together."""
    words = vocabulary = None
    with refused_by_library(directory, "the model of config.json"):
        vocabulary = check_tensors(directory)
    with refused_by_library(directory, "the processor"):
        words = len(VSEProcessor.from_pretrained(directory, trust_remote_code=False).tokenizer)
    if words is not None and vocabulary is not None and words > vocabulary:
        raise ValueError(
            f"{directory}: the tokenizer has {words:,} words, text_config.vocab_size is {vocabulary:,}: save the "
            "processor there again"
        )


def check_tensors(directory: Path) -> int | None:
    """Raises ValueError where the weights are not those of the configuration; returns how many words it knows."""
    model, found = VSEModel.from_pretrained(
        directory,
        device_map="meta",
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    unlike = [f"{name} is {tuple(stored)}, not {tuple(built)}" for name, stored, built in found["mismatched_keys"]]
    unlike += [f"{name} is missing" for name in found["missing_keys"]]
    unlike += [f"{name} is too much" for name in found["unexpected_keys"]]
    unlike += [f"{name} is empty" for name, tensor in model.named_parameters() if 0 in tensor.shape]
    if unlike:
        more = f", and {len(unlike) - 1} more differ" if len(unlike) > 1 else ""
        raise ValueError(f"the weights do not fit: {sorted(unlike)[0]}{more}")
    return model.config.text_config.to_dict().get("vocab_size")
