"""Publishes the demo as a Space that shows a given model on a given data set.

from hf_vse.hub.space import push_space
push_space("spaces_demo", "org/search", model="org/vse-scenes", dataset="org/scenes")
"""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard

from hf_vse.hub.contents import CARD, TEXTS
from hf_vse.hub.errors import check_repo_id, hub_errors
from hf_vse.hub.model_files import real_file, text_in
from hf_vse.hub.private import check_no_secret, is_hub_id

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
        folder: holds app.py, requirements.txt and README.md; hidden files and caches in it are left out, links and
            texts with access tokens refused.
        repo_id: "org/name"; created if it does not exist.
        model, dataset: ids on the Hub, which the Space reads from the variables VSE_MODEL and VSE_DATASET.
        private, token: as for `push_model`.

    Raises:
        FileNotFoundError, ValueError: the folder is not a demo, an id is none, or the Hub refuses.
        ConnectionError: the upload did not finish.
    """
    operations = check_space(folder, repo_id, model, dataset)
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(
            repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        ).repo_id
        for name, value in (("VSE_MODEL", model), ("VSE_DATASET", dataset)):
            api.add_space_variable(repo_id, name, value)
        api.create_commit(repo_id, operations, commit_message="Upload demo", repo_type="space")
    return f"{api.endpoint}/spaces/{repo_id}"


def check_space(folder: str | Path, repo_id: str, model: str, dataset: str) -> list[CommitOperationAdd]:
    """The files to upload; everything that needs no request is checked, see `push_space`.

    The header of the README names model and data set too.
    """
    check_repo_id(repo_id)
    path = Path(folder).expanduser()
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: give the folder of the demo, spaces_demo")
    for name, value in (("model", model), ("dataset", dataset)):
        if not is_hub_id(value):
            raise ValueError(
                f"{name}={value!r} is not a Hub id: a Space reads from the Hub; publish it first, then give org/name"
            )
    files = {name: real_file(path, path / name) for name in shown_files(path)}
    texts = {name: text_in(path, name) or "" for name, file in files.items() if file.suffix in TEXTS}
    for name, text in texts.items():
        check_no_secret(path / name, text)
    try:
        card = SpaceCard(texts[CARD], ignore_metadata_errors=True)
    except Exception as error:  # each YAML library raises its own
        raise ValueError(f"{path / CARD} has a header that is not valid YAML: correct it") from error
    card.data["models"], card.data["datasets"] = [model], [dataset]
    contents: dict[str, Path | bytes] = files | {CARD: str(card).encode()}
    return [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]


def shown_files(folder: Path) -> list[str]:
    """Names of the files of the demo, and of folders that are links, which are refused later."""
    names = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
        if not hidden and path.suffix not in LEFT_OUT and (path.is_symlink() or not path.is_dir()):
            names.append(name.as_posix())
    return names
