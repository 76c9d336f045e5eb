"""`hf-vse push` of folders that are no whole model: refused before the first request.

The Hub is out of reach in the tests, so that a case that comes as far as a request says so and fails.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.bad_input.table import Case, Parts, one_clear_line

NAME = "org/name"
ASKS_THE_HUB = "did not finish"
RECORD = {
    "dataset": "scenes",
    "loss_type": "nce",
    "metrics": {},
    "stages": [],
    "environment": {},
    "recipe": {"dataset": "scenes"},
}
Spoil = Callable[[Path], object]


def push(spoil: Spoil, *options: str, name: str = NAME) -> Callable[[Parts, Path], list[str]]:
    """The command for a copy of the model with something wrong in it."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        model = folder / "model"
        shutil.copytree(parts.model, model)
        (model / "metrics.json").write_text(json.dumps(RECORD))
        spoil(model)
        return ["push", str(model), name, "--quiet", *options]

    return arrange


def outside(path: Path, content: bytes) -> Path:
    """A file that lies beside the model's folder."""
    other = path.parents[len(path.parents) - len(path.parent.parents) - 1].parent / f"private_{path.name}"
    other.write_bytes(content)
    return other


def linked(path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b"secret"
    path.unlink(missing_ok=True)
    path.symlink_to(outside(path, content))


def linked_inside(path: Path) -> None:
    path.rename(path.with_name("notes.txt"))
    path.symlink_to("notes.txt")


def folder_in_place(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


WRONGS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "string": lambda path: path.write_text('"x"'),
    "deep": lambda path: path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "link out": linked,
    "link": linked_inside,
    "folder": folder_in_place,
}
NEEDED = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "modeling_vse.py")
# Without these a model is whole, and some values that are no objects stand for nothing in them.
OPTIONAL = {
    "metrics.json": {"missing"},
    "tokenizer_config.json": set(),
    "modules.json": {"missing", "list"},
    "README.md": {"missing", "empty", "truncated", "list", "null", "string", "deep"},
    "emissions.csv": {"missing"},
}
LACKING = {"tokenizer_config.json": "|its tokenizer has the padding None"}  # what is noticed without the file


def spoiled(name: str, wrong: str) -> Spoil:
    def spoil(model: Path) -> None:
        if name == "README.md":
            (model / name).write_text("# Mine\n")
        if name == "emissions.csv":
            (model / name).write_text("emissions\n0.1\n")
        WRONGS[wrong](model / name)

    return spoil


def changed(field: str, value: object) -> Spoil:
    """A configuration with one field of another value; dots lead into a part."""

    def spoil(model: Path) -> None:
        values = json.loads((model / "config.json").read_text())
        *parts, last = field.split(".")
        place = values
        for part in parts:
            place = place[part]
        place[last] = value
        (model / "config.json").write_text(json.dumps(values))

    return spoil


def without_field(field: str) -> Spoil:
    def spoil(model: Path) -> None:
        values = json.loads((model / "config.json").read_text())
        del values[field]
        (model / "config.json").write_text(json.dumps(values))

    return spoil


def weights(change: Callable[[dict], object]) -> Spoil:
    def spoil(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})

    return spoil


def written(name: str, content: str) -> Spoil:
    def spoil(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(content)

    return spoil


def record(**more: object) -> Spoil:
    return written("metrics.json", json.dumps(RECORD | more))


def linked_folder(model: Path) -> None:
    other = model.parent / "other"
    other.mkdir()
    (other / "a.onnx").write_text("x")
    (model / "onnx").symlink_to(other)


TOKEN = "hf_" + "a" * 34
IMPOSSIBLE = {
    "projection_dim": ["x", None, 0, -1, 8, 10**9, 2.5, [16], float("nan")],
    "loss_type": ["triplet", None, 3],
    "vision_pooling": ["median", None, []],
    "text_pooling": ["first", 0],
    "projection_type": ["cubic", True],
    "temperature": ["x", 0, -1, None],
    "margin": ["x", -1],
    "vision_power": ["x", 0],
    "feature_dropout": ["x", 1, -0.1],
    "vision_config": [None, "x", [], {}, {"model_type": "resnet"}, {"model_type": "no_such"}, {"model_type": None}],
    "text_config": [None, 3, {}, {"model_type": "bert"}, {"model_type": "no_such"}],
    "text_config.vocab_size": ["x", 0, -5, 3, 10**9, None],
    "text_config.hidden_size": ["x", 0, 17],
    "text_config.num_layers": [0, 2, "x"],
    "text_config.word_dim": [0, 9],
    "vision_config.hidden_sizes": ["x", [], [8], [8, 8]],
    "vision_config.depths": [[2, 1], "x"],
    "model_type": ["bert", None, 3, ["vse"]],
    "auto_map": [{}, [], "x", {"AutoModel": "../../x.Y"}, {"AutoModel": 3}, {"AutoModel": "other.Model"},
                 {"AutoModel": "org/code--modeling_vse.VSEModel"}],
}  # fmt: skip
FIELD = r"config\.json|weights|auto_map|tokenizer|other\.py"

CASES = [
    Case("push/whole model", push(lambda model: None), ASKS_THE_HUB),
    *(
        Case(f"push/{name} {wrong}", push(spoiled(name, wrong)), name.replace(".", r"\.") + "|processor|no weights")
        for name in NEEDED
        for wrong in WRONGS
    ),
    *(
        Case(
            f"push/{name} {wrong}",
            push(spoiled(name, wrong)),
            ASKS_THE_HUB if wrong in harmless else name.replace(".", r"\.") + "|processor" + LACKING.get(name, ""),
        )
        for name, harmless in OPTIONAL.items()
        for wrong in WRONGS
        if wrong == "missing" or wrong not in harmless
    ),
    *(
        Case(f"push/config {field} {value!r:.40}", push(changed(field, value)), FIELD)
        for field, values in IMPOSSIBLE.items()
        for value in values
    ),
    *(
        Case(f"push/name {name!r:.20}", push(lambda model: None, name=name), "not a name for a repository")
        for name in ("", " ", "a/b/c", "org/na me", "../x", "org/..", "org/x.git", "org/" + "x" * 99, "/etc", "org/-x")
    ),
    Case("push/no folder", lambda parts, folder: ["push", "nowhere", NAME], "nowhere is not a directory"),
    Case("push/a file", lambda parts, folder: ["push", str(parts.model / "config.json"), NAME], "is not a directory"),
    Case("push/photographs", lambda parts, folder: ["push", str(parts.photographs), NAME], "holds no model"),
    Case("push/gallery", lambda parts, folder: ["push", str(parts.gallery), NAME], "holds no model"),
    Case("push/space alone", push(lambda model: None, "--space", "org/page"), "go together"),
    *(
        Case(
            f"push/space {space!r:.20} {dataset!r:.20}",
            push(lambda model: None, "--space", space, "--dataset", dataset),
            "not a name for a repository|not a Hub id",
        )
        for space, dataset in (("a/b/c", "org/data"), ("", "org/data"), ("org/page", "photos"), ("org/page", "../x"))
    ),
    Case("push/tensor missing", push(weights(lambda each: each.pop("visual_projection.bias"))),
         "lacks 1 weights .*visual_projection.bias"),
    Case(
        "push/tensor too much",
        push(weights(lambda each: each.update(more=each["visual_projection.bias"].clone()))),
        "holds, foreign to its configuration, 1 weights .*more",
    ),
    Case("push/tensors none", push(weights(dict.clear)), "lacks .* weights"),
    Case("push/weights twice", push(lambda model: shutil.copy(
        model / "model.safetensors", model / "model-00001-of-00001.safetensors")),
        "holds weights twice, in model.safetensors and model-00001-of-00001.safetensors"),
    Case("push/index leads out", push(written(
        "model.safetensors.index.json", '{"weight_map": {"a": "../../x.safetensors"}}')), "twice"),
    Case("push/index list", push(written("model.safetensors.index.json", '{"weight_map": []}')), "twice"),
    Case("push/only a pickle", push(lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin")),
         "pytorch_model.bin is not read"),
    Case("push/folder is a link", push(linked_folder), "is a link"),
    Case("push/code imports what is not there", push(written(
        "modeling_vse.py", "from .nowhere import x\nclass VSEModel: pass\n")), "nowhere"),
    Case("push/fewer words than the tokenizer", push(changed("text_config.vocab_size", 4)), "vocab_size|weights"),
    Case("push/token in the card", push(written("README.md", f"log in with {TOKEN}")), "access token"),
    Case("push/token in the code", push(lambda model: (model / "modeling_vse.py").open("a").write(f"# {TOKEN}\n")),
         "access token"),
    Case("push/token in the configuration", push(changed("vision_config.hub_token", "secret")), "hub_token"),
    Case("push/card without a header", push(written("README.md", "---\n[: {\n---\n")), "header"),
    *(
        Case(f"push/record {key} {value!r:.20}", push(record(**{key: value})), r"metrics\.json")
        for key, value in {
            "metrics": 3, "stages": {"a": 1}, "environment": [1], "recipe": "x", "dataset": ["coco"],
        }.items()
    ),
    Case("push/record without numbers", push(record(metrics={"test": {}})), r"metrics\.json"),
    Case("push/record of numbers that are none", push(record(metrics={"test": {"metrics": {"i2t_r1": "x"}}})),
         r"metrics\.json"),
]  # fmt: skip

test_one_clear_line = one_clear_line(CASES)
