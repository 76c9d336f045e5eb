"""Publishes a model directory as it is: weights, code, processor, card and record, in one commit.

from hf_vse.hub.push import push_model
push_model("runs/quickstart", "org/vse-scenes")
"""

import json
import logging
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from hf_vse.hub.errors import hub_errors
from hf_vse.model.card_vse import is_ours
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.publish_vse import CARD, tensors_in, upload_operations, weight_files, write_card

logger = logging.getLogger(__name__)

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def check_model_directory(directory: str | Path) -> Path:
    """The directory, if a whole model lies in it.

    Raises:
        FileNotFoundError: there is none, or a part of it is missing.
        ValueError: it holds something else, or weights that are cut off.
    """
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} is no directory: give the one that a run or save_pretrained wrote")
    config = path / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{directory} holds no model (config.json is missing): give the output_dir of a run")
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.get("model_type") != VSEConfig.model_type:
        raise ValueError(
            f"{config} has model_type {values.get('model_type')!r}, not {VSEConfig.model_type!r}: give a VSEModel"
        )
    check_weights(path)
    classes = values.get("auto_map", {})
    needed = {f"{name.partition('.')[0]}.py" for name in classes.values()} | {"processor_config.json"}
    missing = sorted(name for name in needed if not (path / name).is_file())
    if missing or not classes:
        what = ", ".join(missing) or "auto_map"
        raise FileNotFoundError(f"{directory} lacks {what}: save model and processor there again with save_pretrained")
    return path


def check_weights(directory: Path) -> None:
    """Raises where the safetensors weights are not there or not whole; reads headers only."""
    files = weight_files(directory)
    if not files:
        pickled = ", ".join(sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED))
        found = f"only {pickled}, which may run code when it is loaded" if pickled else "no weights"
        raise FileNotFoundError(f"{directory} holds {found}: save the model with save_pretrained, as safetensors")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards - {path.name for path in files}):
            raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}: save the model again")
    for path in files:
        if path.suffix == ".safetensors":
            tensors_in(path)


def push_model(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    commit_message: str | None = None,
    photographs: bool = False,
) -> str:
    """Publishes a model directory and returns its address.

    Only what belongs to a model is uploaded, weights only as safetensors, records without paths of this machine. It is
    one commit: interrupted, nothing of it is visible, and when it is repeated, files that arrived are not sent again.
    A card that a person changed, here or there, is not written over.

    Args:
        repo_id: "org/name"; made if it does not exist.
        private: who may see it, where it is made; default: as the organisation has it.
        token: default: that of `hf auth login`, or HF_TOKEN.
        revision: branch to commit to; made if it does not exist.
        create_pr: open a pull request instead.
        license: of the weights, such as "apache-2.0".
        photographs: publish `retrieval.png` too where it shows photographs of somebody's data set.

    Raises:
        FileNotFoundError, ValueError: `directory` holds no whole model, or the Hub refuses; in one line.
        ConnectionError: it did not finish.
    """
    path = check_model_directory(directory)
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = read_card(repo_id, token=token, revision=revision)
        operations = upload_operations(path, path, repo_id, card_there=there, license=license, photographs=photographs)
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload model",
            revision=revision,
            create_pr=create_pr,
        )
    return done.pr_url or f"{api.endpoint}/{repo_id}"


def read_card(
    repo_id: str, *, token: str | None = None, revision: str | None = None, repo_type: str = "model"
) -> str | None:
    """The card in a repository, or None where there is none."""
    try:
        path = hf_hub_download(repo_id, CARD, repo_type=repo_type, revision=revision, token=token)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8")


def leave_card(directory: Path) -> None:
    """Writes the card of a finished run next to its model; one that was changed by hand stays."""
    card = directory / CARD
    if not card.is_file() or is_ours(card.read_text(encoding="utf-8")):
        card.write_text(write_card(directory, directory, f"your-name/{directory.resolve().name}"), encoding="utf-8")
