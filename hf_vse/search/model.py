"""The model of a gallery: what is recorded of it, and how it is opened again for queries."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is found of a model without opening it needs no torch
    from hf_vse.embed.encoder import Device, Encoder, Precision
    from hf_vse.search.gallery import GalleryIndex
    from hf_vse.search.store import GalleryStore


def model_facts(encoder: "Encoder") -> dict[str, Any]:
    """What `gallery.json` says of the model.

    `digest` identifies weights and preparation. `encoder` says how to open the model: `place` is the argument of
    `load_encoder`, `kind` the adapter, `needs` the packages that it imports, `dtype` the precision of the weights.
    """
    opened = {"place": encoder.place, "kind": encoder.kind, "needs": list(encoder.needs), "dtype": encoder.dtype}
    return {"model": encoder.name, "digest": encoder.digest, "encoder": opened}


def open_model(
    gallery: "GalleryIndex | GalleryStore",
    name: str | None = None,
    *,
    device: "Device" = None,
    dtype: "Precision" = None,
    trust_remote_code: bool = False,
) -> "Encoder":
    """Opens the encoder for queries to a gallery and checks that it is the one that made the gallery.

    Args:
        name: what `load_encoder` takes; default: the model that the gallery names.
        device: see `load_encoder`.
        dtype: default: as when the gallery was made.
        trust_remote_code: also consent to run a Python class that the gallery names.

    Raises:
        ValueError: the gallery names no model, or a Python class without consent, or weights or preparation differ.
        OSError, ImportError: it is gone, or a package is missing, see `load_encoder`.
    """
    from hf_vse.embed.load import load_encoder

    recorded: dict[str, Any] = gallery.facts.get("encoder") or {}
    kind: Any = "auto" if name is not None else recorded.get("kind", "auto")
    name = recorded_name(gallery, trust_remote_code) if name is None else name
    precision = recorded.get("dtype")
    encoder = load_encoder(
        name,
        device=device,
        dtype=dtype or (None if precision == "float32" else precision),  # the default of adapters with a fixed one
        trust_remote_code=trust_remote_code,
        kind=kind,
    )
    gallery.check_model(encoder)
    return encoder


def recorded_name(gallery: "GalleryIndex | GalleryStore", trust_remote_code: bool = False) -> str:
    """What `load_encoder` takes to open the model of a gallery.

    Raises:
        ValueError: the gallery names none, or a Python class without consent to run it.
        OSError: it is not there any more.
    """
    from hf_vse.embed.adapters.joint import joined_names
    from hf_vse.embed.encoder import Encoder

    recorded = gallery.facts.get("encoder") or {}
    name, kind = recorded.get("place") or gallery.model, recorded.get("kind", "auto")
    if name is None:
        raise ValueError("the gallery does not say which model made it: give --model")
    if kind == Encoder.kind and not trust_remote_code:
        raise ValueError(
            f"the gallery was made by {name}, a Python class, and code is not run because a gallery names it: "
            f"add --model {name}"
        )
    for part in joined_names(name) if kind != Encoder.kind else []:
        if Path(part).is_absolute() and not Path(part.partition("@")[0]).exists():
            raise FileNotFoundError(f"{part}, the model that made the gallery, is gone: name it with --model")
    return name
