"""Publishes a model directory as it is: weights, code, processor, card and record, in one commit.

from hf_vse.hub.push import push_model
push_model("runs/quickstart", "org/vse-scenes")

Once this file is imported, `model.push_to_hub` publishes with the same card. `from hf_vse import VSEModel` imports it.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from hf_vse.files import read_text, write_text
from hf_vse.hub.contents import CARD, contents_of, own_card, upload_operations, write_card
from hf_vse.hub.directory import check_model_directory
from hf_vse.hub.errors import check_repo_id, hub_errors
from hf_vse.hub.exported import exported_model
from hf_vse.hub.record import run_of
from hf_vse.hub.signature import is_ours
from hf_vse.model.modeling_vse import VSEModel, VSEPreTrainedModel

logger = logging.getLogger(__name__)

OF_MODELS = (".safetensors", ".onnx", ".py", "modules.json")


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
    format: str | None = None,
) -> str:
    """Publishes a model directory, or the model in the format of another library, and returns its address.

    Only the files of a model are uploaded: weights as safetensors, the code that the configurations name, and the
    record without local paths and tokens; symbolic links are refused. It is one commit: after an interruption nothing
    is visible, and when it is repeated, files that have arrived are not sent again. The directory is only read. A card
    that a person changed, here or on the Hub, is not overwritten.

    Args:
        repo_id: "org/name"; created if it does not exist.
        private: visibility of a new repository; default: that of the organisation.
        token: default: that of `hf auth login`, or HF_TOKEN.
        revision: branch to commit to; created if it does not exist.
        create_pr: open a pull request instead.
        license: of the weights, such as "apache-2.0".
        photographs: publish `retrieval.png` too if it shows photographs of a data set.
        format: see `export_model`: what it writes is published, with a card for that format, and nothing else.

    Raises:
        ImportError: the library of the format is not installed.
        OSError, ValueError: `directory` holds no complete model, or the Hub refuses; in one line. The directory is
            checked before the first request.
        ConnectionError: the upload did not finish.
    """
    check_repo_id(repo_id)
    path = check_model_directory(directory)
    where: dict[str, Any] = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
    shown: dict[str, Any] = {"license": license, "photographs": photographs}
    with TemporaryDirectory() as folder:
        exported = None if format is None else exported_model(path, format, Path(folder, "model"), repo_id)
        if exported is None:
            own_card(path)
        files = contents_of(path, path, photographs, exported)
        write_card(path, path, repo_id, files=files, exported=exported)  # raises what would fail later
        done = upload(path, path, repo_id, commit_message=commit_message, **where, **shown, exported=exported)
    return done.pr_url or str(done.repo_url)


def push_to_hub(
    self: VSEModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: Collection[str] | None = None,
) -> CommitInfo:
    """`push_to_hub` of transformers, with the card of hf_vse and the record of the run that made the weights.

    Args: as in transformers; `tags` go into the card.

    Raises:
        ValueError, ConnectionError: see `push_model`.
    """
    check_repo_id(repo_id)
    where: dict[str, Any] = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
    message: dict[str, Any] = {"commit_message": commit_message, "commit_description": commit_description}
    with TemporaryDirectory() as folder:
        self.save_pretrained(folder, max_shard_size=max_shard_size)
        return upload(
            Path(folder), run_of(Path(folder), self.name_or_path), repo_id, tags=tags or (), **where, **message
        )


VSEPreTrainedModel.push_to_hub = push_to_hub


def upload(
    saved: Path,
    run: Path | None,
    repo_id: str,
    *,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str | None,
    commit_description: str | None = None,
    **shown: Any,
) -> CommitInfo:
    """One commit of a saved model and the record of its run.

    Args:
        shown: for `upload_operations`.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = read_card(repo_id, token=token, revision=revision)
        operations = upload_operations(saved, run, repo_id, card_there=there, **shown)
        if shown.get("exported"):
            check_no_other_model(api.list_repo_files(repo_id, revision=revision), operations, repo_id)
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def check_no_other_model(there: list[str], operations: list[CommitOperationAdd], repo_id: str) -> None:
    """Raises ValueError where files of a model in another format would stay beside those that are uploaded."""
    sent = {each.path_in_repo for each in operations}
    if left := sorted(name for name in there if name.endswith(OF_MODELS) and name not in sent):
        raise ValueError(
            f"{repo_id} holds a model in another format ({left[0]}): give another repository, or delete it"
        )


def read_card(
    repo_id: str, *, token: bool | str | None = None, revision: str | None = None, repo_type: str = "model"
) -> str | None:
    """The card in a repository, or None where there is none."""
    try:
        path = hf_hub_download(repo_id, CARD, repo_type=repo_type, revision=revision, token=token)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8", errors="replace")  # a card of hf_vse is always UTF-8


def may_write_card(card: Path) -> bool:
    """Whether a card may be written here: there is none, or one of ours that has not been changed."""
    if card.is_symlink() or card.exists():
        try:
            return card.is_file() and not card.is_symlink() and is_ours(read_text(card))
        except ValueError:  # no text
            return False
    return True


def leave_card(
    directory: Path, repo_id: str | None = None, license: str | None = None, tags: Collection[str] = ()
) -> None:
    """Writes the card of a run next to its model; a card that a person wrote there stays, and so does a licence."""
    card = directory / CARD
    if not may_write_card(card):
        logger.warning("%s was not written by hf_vse and is kept: the model card is not written", card)
        return
    repo_id = repo_id or f"your-name/{directory.resolve().name}"
    if license is None and card.exists():
        license = ModelCard(read_text(card), ignore_metadata_errors=True).data.get("license")
    write_text(card, write_card(directory, directory, repo_id, license=license, tags=tags))
