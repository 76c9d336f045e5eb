"""Opens any model by its name, as an `Encoder`.

| `kind`                  | what `name` may be                                                                   |
|-------------------------|--------------------------------------------------------------------------------------|
| `vse`                   | folder or Hub id of a model of this package; the installed code is run, not its own  |
| `transformers`          | folder or Hub id of CLIP, SigLIP, ALIGN, BLIP, ...: see `transformers_models.py`     |
| `sentence_transformers` | folder or Hub id with a `modules.json`                                               |
| `open_clip`             | `open_clip:ViT-B-32/laion2b_s34b_b79k`, or a folder: see `open_clip_models.py`       |
| `onnx`                  | folder with two ONNX files: see `onnx_towers.py`                                     |
| `python`                | `my_encoder.py:MyEncoder` or `my_package.module:MyEncoder`, a class without arguments |
| `joint`                 | several of these but the last, `runs/a+runs/b`: see `joint.py`                       |

With `kind="auto"` the name and the files behind it decide.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import CONFIG_NAME

from hf_vse.data.digests import digest_of
from hf_vse.data.spec import whole_path
from hf_vse.embed.adapters.joint import SIGN, JointEncoder, joined_names
from hf_vse.embed.adapters.onnx_towers import ONNXEncoder, onnx_files
from hf_vse.embed.adapters.open_clip_models import FOLDER_CONFIG, PREFIX, OpenCLIPEncoder
from hf_vse.embed.adapters.sentence_models import SentenceTransformersEncoder
from hf_vse.embed.adapters.transformers_models import TransformersEncoder
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.encoder import Device, Encoder, Precision, source_digest
from hf_vse.embed.stored import check_name, stored_json
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.dual_encoder_vse import DUAL_ENCODERS
from hf_vse.model.sentence_transformers_vse import MODULE_TYPE

Kind = Literal["auto", "vse", "transformers", "sentence_transformers", "open_clip", "onnx", "python", "joint"]

UNDERSTOOD = (
    f"understood are models of this package, of transformers ({', '.join(DUAL_ENCODERS)}), of sentence-transformers, "
    f"{PREFIX}ARCHITECTURE/WEIGHTS, a folder with two ONNX files, several of these joined by {SIGN}, and "
    "FILE.py:CLASS, a subclass of hf_vse.embed.encoder.Encoder with encode_images(images) and encode_texts(texts)"
)
PYTHON_NAME = re.compile(r"(?P<place>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def load_encoder(
    name: str,
    *,
    device: Device = None,
    dtype: Precision = None,
    trust_remote_code: bool = False,
    kind: Kind = "auto",
) -> Encoder:
    """Opens what `name` stands for, see above.

    Args:
        device: default: the accelerator, where there is one.
        dtype: `float32` (default), `bfloat16` or `float16`.
        trust_remote_code: run code that comes with a model of transformers or sentence-transformers.

    Raises:
        ValueError: nothing that is understood, or an option that this kind of model does not have.
        OSError: nothing there, or weights in another format than safetensors.
        ImportError: an optional package is missing.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    kind = kind_of(name, trust_remote_code) if kind == "auto" else kind
    encoder = LOADERS[kind](name, device, dtype, trust_remote_code)
    encoder.place = model_place(name)
    return encoder


def model_place(name: str) -> str:
    """The same name for somebody who works in another folder: paths in it are absolute."""
    if name and Path(name).exists():  # an empty path is the folder one works in
        return whole_path(name)
    if len(parts := joined_names(name)) > 1:
        return SIGN.join(model_place(part) for part in parts)
    if name.startswith(PREFIX) and Path(name.removeprefix(PREFIX)).exists():
        return PREFIX + whole_path(name.removeprefix(PREFIX))
    match = PYTHON_NAME.fullmatch(name)
    if match is not None and match["place"].endswith(".py"):
        return f"{Path(match['place']).absolute()}:{match['name']}"
    model, at, file = name.partition("@")  # a folder of ONNX files and a model, or published weights and a file
    return f"{model_place(model)}@{model_place(file)}" if at else name


def kind_of(name: str, trust_remote_code: bool = False) -> Kind:
    """Decides by the name, and by the files of the folder or of the repository on the Hub."""
    if not name.strip() or "\0" in name:
        raise ValueError(f"{name!r} names no model; {UNDERSTOOD}")
    folder = Path(name)
    if len(parts := joined_names(name)) > 1:
        for part in parts:
            kind_of(part, trust_remote_code)
        return "joint"
    if name.startswith(PREFIX):
        return "open_clip"
    if PYTHON_NAME.fullmatch(name) and not folder.exists():
        return "python"
    try:
        check_name(name.partition("@")[0])
    except OSError as error:
        raise ValueError(f"{error}; {UNDERSTOOD}") from error
    if (folder / FOLDER_CONFIG).is_file() and not (folder / CONFIG_NAME).is_file():
        return "open_clip"
    if onnx_files(Path(name.partition("@")[0])) and (
        not folder.is_dir() or not (folder / "model.safetensors").is_file()
    ):
        return "onnx"
    config = stored_json(name, CONFIG_NAME, dict) or {}
    model_type = str(config.get("model_type"))
    if model_type == VSEConfig.model_type:
        return "vse"  # before its own modules.json, which makes it a module of sentence-transformers as well
    if (modules := stored_json(name, "modules.json")) is not None:
        ours = MODULE_TYPE in str(modules)  # and its config.json is damaged
        return "vse" if ours else "sentence_transformers"
    if model_type in DUAL_ENCODERS or (trust_remote_code and "auto_map" in config):
        return "transformers"
    if config:
        remedy = "; --trust_remote_code runs the code that comes with it" if "auto_map" in config else ""
        raise ValueError(f"{name} is a model of type {model_type!r:.60}{remedy}; {UNDERSTOOD}")
    there = (
        "holds no config.json" if folder.is_dir() else "is not a folder, and nothing of that name was found on the Hub"
    )
    raise ValueError(f"{name} {there}; {UNDERSTOOD}")


def load_python(name: str, device: Device, dtype: Precision, trust_remote_code: bool) -> Encoder:
    """An instance of a class that a person has written. Its digest covers its source files beside what it declares."""
    match = PYTHON_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} names no class; write my_encoder.py:MyEncoder")
    for option, value in (("device", device), ("dtype", dtype)):
        if value is not None:
            raise ValueError(f"{option}={value!r} has no effect on {name}: the class chooses it; leave it out")
    place, class_name = match["place"], match["name"]
    module = module_of_file(Path(place)) if place.endswith(".py") else installed_module(place)
    found = vars(module).get(class_name)
    if not isinstance(found, type) or not issubclass(found, Encoder):
        what = "has no" if found is None else "does not derive from hf_vse.embed.encoder.Encoder:"
        raise ValueError(f"{place} {what} {class_name}; write class {class_name}(Encoder)")
    if isinstance(inspect.getattr_static(found, "digest"), property):
        raise ValueError(f"{place}: digest of {class_name} is a property; make it an attribute or a cached_property")
    encoder = found()
    if encoder.name == Encoder.name:
        encoder.name = name
    source = source_digest(found)
    encoder.digest = None if source is None else digest_of(source, encoder.digest)
    return encoder


def load_joint(name: str, device: Device, dtype: Precision, trust_remote_code: bool) -> Encoder:
    """Opens each of the models that a name joins."""
    options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    kinds = {part: kind_of(part, trust_remote_code) for part in joined_names(name)}
    for part, kind in kinds.items():
        if kind == Encoder.kind:
            raise ValueError(f"{part} is a Python class, which is not joined to others: open them in a class")
    return JointEncoder([load_encoder(part, kind=kinds[part], **options) for part in joined_names(name)])


def installed_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something
        raise ImportError(f"there is no module {name}; install it, or write FILE.py:CLASS") from error


def module_of_file(path: Path) -> Any:
    """Runs a file as Python runs a script: what lies beside it can be imported."""
    if not path.is_file():
        raise OSError(f"there is no file {path}; write FILE.py:CLASS")
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(f"hf_vse_encoder_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise OSError(f"{path} is no file of Python; write FILE.py:CLASS")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


LOADERS: dict[str, Callable[[str, Device, Precision, bool], Encoder]] = {
    adapter.kind: adapter.from_pretrained
    for adapter in (VSEEncoder, TransformersEncoder, SentenceTransformersEncoder, OpenCLIPEncoder, ONNXEncoder)
} | {Encoder.kind: load_python, JointEncoder.kind: load_joint}
