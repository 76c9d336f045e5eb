"""Facts and recalls of the model, from the files published with it."""

import html
import json
from pathlib import Path
from typing import Any

from encoder import PublishedModel
from gallery import Gallery
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
HEADINGS = ("R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rsum")
PAPER = "https://arxiv.org/abs/2110.08872"


def public_name(name: str) -> str:
    """The model's name without local folders; also for `FILE.py:CLASS` and `FOLDER@PROCESSOR`."""
    parts = [(part, Path(part)) for part in name.split("@")]
    return "@".join(path.resolve().name if path.exists() or path.is_absolute() else part for part, path in parts)


def describe(gallery: Gallery) -> dict[str, Any]:
    """Facts about model and gallery, as JSON values."""
    known = gallery.encoder.facts()
    towers = {name: {"vse_gru_text": "GRU"}.get(known[name], known[name]) for name in ("image_tower", "text_tower")}
    return (
        {"model": public_name(gallery.encoder.name)}
        | known
        | towers
        | {
            "dimensions": int(gallery.image_embeds.shape[1]),
            "photographs": len(gallery.album),
            "sentences": len(gallery.album.sentences),
            "broken_photographs": gallery.album.broken,
            "recalls": recalls(gallery.encoder.name),
        }
    )


def recalls(model: str) -> dict[str, dict[str, float]]:
    """Recalls in percent per split or data set, with the keys RECALLS; from metrics.json, else the model card."""
    file = _file_of(model, "metrics.json")
    if file is not None:
        content = json.loads(file.read_text(encoding="utf-8"))
        reports = content.get("metrics", {})
        return {
            split: {name: report["metrics"][name] for name in RECALLS if name in report["metrics"]}
            for split, report in reports.items()
            if isinstance(report, dict) and isinstance(report.get("metrics"), dict)
        }
    card = _file_of(model, "README.md")
    return {} if card is None else _of_card(card)


def _of_card(file: Path) -> dict[str, dict[str, float]]:
    try:
        results = ModelCard.load(file).data.eval_results or []
    except (ValueError, TypeError):  # no metadata, or unknown metadata
        return {}
    found: dict[str, dict[str, float]] = {}
    for each in results:
        name = next((one for one in (each.metric_type, each.metric_name) if one in RECALLS), None)
        if name is not None:
            row = " ".join(filter(None, (each.dataset_name, each.dataset_split)))
            found.setdefault(row, {})[name] = float(each.metric_value)
    return found


def _file_of(model: str, name: str) -> Path | None:
    if Path(model).is_dir():
        return Path(model) / name if (Path(model) / name).is_file() else None
    try:
        return Path(hf_hub_download(model, name))
    except (OSError, EntryNotFoundError, HFValidationError):  # the last: not a Hub id
        return None


def facts_table(facts: dict[str, Any]) -> str:
    rows = {
        "Image tower": facts["image_tower"],
        "Text tower": facts["text_tower"],
        "Parameters": "unknown" if facts["parameters"] is None else f"{facts['parameters'] / 1e6:,.1f} million",
        "Common space": f"{facts['dimensions']:,} dimensions, cosine similarity",
        "Objective": facts["loss"] or "not stated",
        "Gallery": f"{facts['photographs']:,} photographs, {facts['sentences']:,} sentences",
    }
    if facts["broken_photographs"]:
        rows["Left out"] = f"{facts['broken_photographs']:,} photographs that cannot be read"
    lines = "".join(f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f'<div class="wide"><table class="facts">{lines}</table></div>'


def recalls_table(facts: dict[str, Any]) -> str:
    if not facts["recalls"]:
        return "<p>No recalls are published with this model.</p>"
    ways = "".join(f'<th colspan="3">{way}</th>' for way in ("photograph → sentence", "sentence → photograph"))
    head = f"<tr><th></th>{ways}<th></th></tr>"
    head += "<tr><th></th>" + "".join(f"<th>{name}</th>" for name in HEADINGS) + "</tr>"
    lines = ""
    for split, values in facts["recalls"].items():
        cells = "".join(f"<td>{values[name]:.1f}</td>" if name in values else "<td>–</td>" for name in RECALLS)
        lines += f"<tr><th>{html.escape(split)}</th>{cells}</tr>"
    return f'<div class="wide"><table class="recalls">{head}{lines}</table></div>'


def how_to_load(model: PublishedModel) -> str:
    """Python code to copy, as Markdown."""
    return f"```python\n{model.how_to_load.format(name=public_name(model.name))}\n```"
