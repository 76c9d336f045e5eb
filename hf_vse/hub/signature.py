"""Cards that hf_vse may write anew, and cards of a person, which it leaves alone.

A card that was written here ends with a comment that holds a digest of it. Where the digest fits, nobody has changed
the card since. Tags, licence and what the Hub adds to the header may change without that.
"""

import hashlib
import json
import re
from collections.abc import Collection
from functools import cache
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData, RepoCard
from jinja2 import Environment, PackageLoader, StrictUndefined

SIGNATURE = re.compile(r"\n*<!-- Written by hf_vse, digest ([0-9a-f]{16})\.[^>]*-->\s*$")
# What a person, the Hub or a library changes in the header without making the card their own.
UNSIGNED = ("tags", "license", "license_name", "license_link", "dataset_info", "configs", "size_categories")
TEMPLATE_OF_TRANSFORMERS = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


def table_row(cells: Collection[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


@cache
def templates() -> Environment:
    """Those beside this file; each is compiled once."""
    loader = PackageLoader("hf_vse.hub", "")
    found = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"row": table_row, "commas": "{:,}".format}
    return found


def written_card(template: str, header: CardData, kind: type[RepoCard] = ModelCard, **values: Any) -> str:
    """The signed text of a card.

    Args:
        template: name of a file beside this one, such as `card.md.j2`; it may use the filters `row` and `commas`.
        header: the YAML block above the text.
        kind: of the card.
        values: what the template names.
    """
    body = re.sub(r"\n{3,}", "\n\n", templates().get_template(template).render(values))
    card = kind(f"---\n{header.to_yaml()}\n---\n\n{body.strip()}\n")
    kept = "Changed by hand, it is left alone by later uploads."
    return f"{str(card).rstrip()}\n\n<!-- Written by hf_vse, digest {card_digest(card)}. {kept} -->\n"


def card_digest(card: RepoCard) -> str:
    header = {key: value for key, value in card.data.to_dict().items() if key not in UNSIGNED}
    body = "\n".join(SIGNATURE.sub("", card.text).split("\n")).strip()
    text = json.dumps(header, sort_keys=True, default=str) + body.replace("\r\n", "\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_ours(text: str, kind: type[RepoCard] = ModelCard) -> bool:
    """Whether a card may be written anew: nobody has changed it since it was signed, or it says nothing yet."""
    try:
        card = kind(text, ignore_metadata_errors=True)
    except Exception:  # each YAML library raises its own; only a person can have written such a header
        return False
    if found := SIGNATURE.search(card.text):
        return found[1] == card_digest(card)
    header = ModelCardData(library_name="transformers")
    says_nothing = ModelCard.from_template(header, model_description=TEMPLATE_OF_TRANSFORMERS)
    return card.text.strip() in ("", says_nothing.text.strip())
