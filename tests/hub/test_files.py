"""Which files of a folder are published, and which text in them stops a push; without a Hub."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from hf_vse.hub.contents import public_contents, upload_operations
from hf_vse.hub.directory import check_model_directory
from hf_vse.hub.model_files import code_in, files_in
from hf_vse.hub.private import check_no_secret
from hf_vse.hub.push import leave_card
from hf_vse.hub.signature import is_ours
from hf_vse.hub.space import check_space
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.hub.publisher import PERSONS_CARD
from tests.hub.records import coco_record

TOKEN = "hf_" + "a" * 34
PRIVATE = "root:x:0:0"
EARLIER = Path(__file__).parents[1] / "old_formats" / "v0_1" / "published"


@pytest.fixture
def directory(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def names(directory: Path) -> set[str]:
    return {each.path_in_repo for each in upload_operations(directory, directory, "org/name", card_there=None)}


PUBLISHED_NAMES = (
    "config.json", "README.md", "metrics.json", "recipe.yaml", "emissions.csv", "vocab.txt", "retrieval.png",
    "modeling_vse.py", "onnx/image_encoder.onnx", "0_VSE/config.json", "model-00001-of-00002.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_a_link_is_never_followed(name, directory, tmp_path):
    private = tmp_path / "passwd"
    private.write_text(PRIVATE)
    (directory / "metrics.json").write_text(json.dumps(coco_record() | {"dataset": "scenes"}))
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(private)
    with pytest.raises(ValueError, match="is a link"):
        upload_operations(directory, directory, "org/name", card_there=None)


def test_a_folder_that_is_a_link_is_not_entered(directory, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.onnx").write_text(PRIVATE)
    (directory / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="onnx is a link"):
        files_in(directory, ["onnx/*.onnx"])


def test_a_model_folder_may_itself_be_a_link(directory, tmp_path):
    latest = tmp_path / "latest"
    latest.symlink_to(directory)
    assert check_model_directory(latest) == latest and names(latest) == names(directory)


def test_only_code_that_the_configurations_name_is_published(directory):
    known = names(directory)
    assert {"modeling_vse.py", "processing_vse.py", "sentence_transformers_vse.py"} <= known
    (directory / "secrets_vse.py").write_text(f"PASSWORD = {PRIVATE!r}")
    assert names(directory) == known
    (directory / "extra.py").write_text("from .deeper import x\n")
    (directory / "deeper.py").write_text("x = 1\n")
    (directory / "pooling_vse.py").write_text((directory / "pooling_vse.py").read_text() + "\nfrom .extra import x\n")
    assert names(directory) == known | {"extra.py", "deeper.py"}
    assert set(code_in(directory)) == {name for name in names(directory) if name.endswith(".py")}


def test_a_folder_of_another_version_keeps_its_code_until_it_is_saved_again(tmp_path, caplog):
    earlier = Path(shutil.copytree(EARLIER, tmp_path / "earlier"))
    with caplog.at_level(logging.WARNING):
        check_model_directory(earlier)
    assert "card_vse.py" in caplog.text and "are not the code of this version of hf_vse" in caplog.text
    code = {name: path.read_bytes() for name, path in public_contents(earlier, None).items() if name.endswith(".py")}
    assert code == {path.name: path.read_bytes() for path in EARLIER.glob("*.py")} and "publish_vse.py" in code
    saved = tmp_path / "saved"
    VSEModel.from_pretrained(earlier).save_pretrained(saved)
    VSEProcessor.from_pretrained(earlier).save_pretrained(saved)
    caplog.clear()
    check_model_directory(saved)
    assert "not the code" not in caplog.text and "card_vse.py" not in public_contents(saved, None)


def test_code_that_is_not_that_of_the_package_is_named(directory, caplog):
    with caplog.at_level(logging.WARNING):
        check_model_directory(directory)
        assert "not the code" not in caplog.text
        (directory / "losses_vse.py").write_text((directory / "losses_vse.py").read_text() + "\nprint('hello')\n")
        check_model_directory(directory)
    assert "losses_vse.py is not the code of this version of hf_vse" in caplog.text


def test_tokens_of_an_old_run_are_not_published(directory):
    record = coco_record()
    record["recipe"] |= {"hub_token": TOKEN, "wandb_api_key": "k" * 8, "run_name": f"with {TOKEN}", "HF_TOKEN": "t1"}
    record["stages"][0]["push_to_hub_token"] = TOKEN
    (directory / "metrics.json").write_text(json.dumps(record))
    (directory / "recipe.yaml").write_text(f"hub_token: {TOKEN}\n")
    contents = public_contents(directory, directory)
    operations = upload_operations(directory, directory, "org/name", card_there=None)
    texts = [each.path_or_fileobj for each in operations if isinstance(each.path_or_fileobj, bytes)]
    assert {"metrics.json", "recipe.yaml"} <= contents.keys() and len(texts) >= 3
    for secret in (TOKEN, "k" * 8, "t1\n", "hub_token", "api_key"):
        assert not any(secret.encode() in text for text in texts), secret


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", f"use {TOKEN}"),
        ("config.json", json.dumps({"text_config": {"token": "abc"}})),
        ("config.json", json.dumps({"list": [{"wandb_api_key": "abc"}]})),
        ("vocab.txt", f"a\n{TOKEN}\n"),
    ],
)
def test_text_with_a_token_is_refused(name, text):
    with pytest.raises(ValueError, match=rf"{name} holds"):
        check_no_secret(name, text)


def test_words_of_a_tokenizer_are_no_secrets():
    check_no_secret("tokenizer.json", json.dumps({"vocab": {"token": 3, "password": 4}, "pad_token": "<pad>"}))
    check_no_secret("vocab.txt", "hf_hub\ntoken\n")


def test_checking_a_model_changes_nothing(directory):
    before = {path: path.read_bytes() for path in directory.rglob("*")}
    state, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    check_model_directory(directory)
    assert {path: path.read_bytes() for path in directory.rglob("*")} == before
    assert torch.equal(torch.get_rng_state(), state)  # a push may run beside a training
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)


@pytest.mark.parametrize("content", [PERSONS_CARD.encode(), b"\x89PNG\xf3\x00", b"---\n[: {\n---\n# Mine\n"])
def test_a_card_that_is_not_ours_stays_at_the_end_of_a_run(content, directory, caplog):
    (directory / "README.md").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        leave_card(directory)
    assert (directory / "README.md").read_bytes() == content and "is kept" in caplog.text


def test_a_card_is_never_written_through_a_link(directory, tmp_path):
    mine = tmp_path / "mine.md"
    (directory / "README.md").symlink_to(mine)
    leave_card(directory)
    assert not mine.exists()
    (directory / "README.md").unlink()
    leave_card(directory)
    assert is_ours((directory / "README.md").read_text())


@pytest.fixture
def demo(tmp_path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    for name in ("app.py", "requirements.txt", ".secret"):
        (folder / name).write_text("x = 1\n")
    (folder / "README.md").write_text("---\ntitle: Demo\nsdk: gradio\n---\n")
    return folder


def test_a_space_holds_no_link_no_hidden_file_and_no_token(demo, tmp_path):
    (demo / ".git").mkdir()
    (demo / ".git" / "config").write_text(TOKEN)
    (demo / ".env").symlink_to(tmp_path / "passwd")
    asked = {"repo_id": "org/page", "model": "org/model", "dataset": "org/data"}
    assert {each.path_in_repo for each in check_space(demo, **asked)} == {"app.py", "requirements.txt", "README.md"}
    (demo / "settings.py").write_text(f"TOKEN = '{TOKEN}'")
    with pytest.raises(ValueError, match=r"settings.py holds what looks like an access token \(hf_aaa"):
        check_space(demo, **asked)
    (demo / "settings.py").unlink()
    (tmp_path / "passwd").write_text(PRIVATE)
    (demo / "style.css").symlink_to(tmp_path / "passwd")
    with pytest.raises(ValueError, match="style.css is a link"):
        check_space(demo, **asked)
    (demo / "style.css").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text(PRIVATE)
    (demo / "more").symlink_to(tmp_path / "folder")
    with pytest.raises(ValueError, match="more is a link"):
        check_space(demo, **asked)
