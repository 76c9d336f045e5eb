"""Publishes a model directory as it is: weights, code, processor, card and record, in one commit.

from hf_vse.hub.push import push_model
push_model("runs/quickstart", "org/vse-scenes")
"""

import logging
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from hf_vse.files import read_text, write_text
from hf_vse.hub.directory import check_model_directory
from hf_vse.hub.errors import check_repo_id, hub_errors
from hf_vse.model.card_vse import is_ours
from hf_vse.model.publish_vse import CARD, own_card, public_contents, upload_operations, write_card

logger = logging.getLogger(__name__)


def check_before_pushing(directory: str | Path, repo_id: str, photographs: bool = False) -> Path:
    """Everything that can be refused without asking the Hub; nothing is sent and nothing written.

    Raises:
        FileNotFoundError, ValueError: see `push_model`.
    """
    check_repo_id(repo_id)
    path = check_model_directory(directory)
    own_card(path)
    write_card(path, path, repo_id, files=public_contents(path, path, photographs))
    return path


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

    Only what belongs to a model is uploaded: weights only as safetensors, of Python files only the code that the
    configurations name, records without paths of this machine and without tokens; links are refused. It is one
    commit: interrupted, nothing of it is visible, and when it is repeated, files that arrived are not sent again. The
    directory is only read. A card that a person changed, here or there, is not written over.

    Args:
        repo_id: "org/name"; made if it does not exist.
        private: who may see it, where it is made; default: as the organisation has it.
        token: default: that of `hf auth login`, or HF_TOKEN.
        revision: branch to commit to; made if it does not exist.
        create_pr: open a pull request instead.
        license: of the weights, such as "apache-2.0".
        photographs: publish `retrieval.png` too where it shows photographs of somebody's data set.

    Raises:
        FileNotFoundError, ValueError: `directory` holds no whole model, or the Hub refuses; in one line. What is wrong
            with the directory is found before the first request.
        ConnectionError: it did not finish.
    """
    path = check_before_pushing(directory, repo_id, photographs)
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
    return Path(path).read_text(encoding="utf-8", errors="replace")  # what is no text was not written by us


def may_write_card(card: Path) -> bool:
    """Whether a card may be written to this place: there is none, or only one that nobody has changed."""
    if card.is_symlink() or card.exists():
        try:
            return card.is_file() and not card.is_symlink() and is_ours(read_text(card))
        except ValueError:  # no text
            return False
    return True


def leave_card(directory: Path) -> None:
    """Writes the card of a finished run next to its model; whatever a person has put in its place stays."""
    card = directory / CARD
    if may_write_card(card):
        write_text(card, write_card(directory, directory, f"your-name/{directory.resolve().name}"))
    else:
        logger.warning("%s was not written by hf_vse and is kept: the model card is not written", card)
