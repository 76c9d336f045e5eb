"""Publishes the demo as a Space that shows a given model on a given data set.

from hf_vse.hub.space import push_space
push_space("spaces_demo", "org/search", model="org/vse-scenes", dataset="org/scenes")
"""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard

from hf_vse.hub.errors import hub_errors
from hf_vse.model.card_text_vse import is_hub_id
from hf_vse.model.publish_vse import CARD

NEEDED = ("app.py", "requirements.txt", CARD)
LEFT_OUT = (".pyc", ".pyi", ".log")


def push_space(
    folder: str | Path,
    repo_id: str,
    *,
    model: str,
    dataset: str,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Publishes `folder` as a gradio Space and returns its address.

    Args:
        folder: holds app.py, requirements.txt and README.md; hidden files and caches in it are left out.
        repo_id: "org/name"; made if it does not exist.
        model, dataset: ids on the Hub, which the Space reads from the variables VSE_MODEL and VSE_DATASET.
        private, token: as for `push_model`.

    Raises:
        FileNotFoundError, ValueError: the folder is no demo, an id is none, or the Hub refuses.
        ConnectionError: it did not finish.
    """
    path = Path(folder).expanduser()
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: give the folder of the demo, spaces_demo")
    for name, value in (("model", model), ("dataset", dataset)):
        if not is_hub_id(value):
            raise ValueError(
                f"{name}={value!r} is no Hub id: a Space reads from the Hub; publish it first, then give org/name"
            )
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        for name, value in (("VSE_MODEL", model), ("VSE_DATASET", dataset)):
            api.add_space_variable(repo_id, name, value)
        api.create_commit(
            repo_id, space_operations(path, model, dataset), commit_message="Upload demo", repo_type="space"
        )
    return f"{api.endpoint}/spaces/{repo_id}"


def space_operations(folder: Path, model: str, dataset: str) -> list[CommitOperationAdd]:
    """The files of the demo; the header of its README names model and data set too."""
    card = SpaceCard.load(folder / CARD)
    card.data["models"], card.data["datasets"] = [model], [dataset]
    operations = [CommitOperationAdd(CARD, str(card).encode())]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
        if path.is_file() and not hidden and path.suffix not in LEFT_OUT and name.as_posix() != CARD:
            operations.append(CommitOperationAdd(name.as_posix(), path))
    return operations
