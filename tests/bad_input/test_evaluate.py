"""`hf-vse evaluate`: outputs, options that do nothing, foils, classes, templates, arrays, with the usual wrongs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bad_input.table import Case, Parts, one_clear_line

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
GARBAGE = bytes(range(128, 256))
EMPTY = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without tensors
ARO = {
    "image_path": "00.png", "bbox_x": 0, "bbox_y": 0, "bbox_w": 9, "bbox_h": 9, "true_caption": "a red dog",
    "false_caption": "a blue dog", "relation_name": "on", "attributes": ["red", "blue"],
}  # fmt: skip
CREPE = {"0": {"filename": "00.png", "caption": "a dog", "negative_caption": "a cat"}}
WINO = {"image_0": "00", "image_1": "02", "caption_0": "a dog on a cat", "caption_1": "a cat on a dog"}
CREPE_FILES = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def evaluate(*words: str, arrange: Callable[[Parts, Path], object] = lambda parts, folder: None):
    """The command for the good model on the good photographs; words may hold {model}, {photographs}, {gallery}."""

    def command(parts: Parts, folder: Path) -> list[str]:
        arrange(parts, folder)
        asked = [word.format(**parts._asdict()) for word in words]
        data = ["--dataset", "imagefolder", "--data_dir", str(parts.photographs), "--split", "train"]
        output = [] if "--output" in asked else ["--output", "numbers.json"]
        return ["evaluate", str(parts.model), *data, *output, *asked, "--quiet", "--batch_size", "64"]

    return command


def bare(*words: str, arrange: Callable[[Parts, Path], object] = lambda parts, folder: None):
    """The command with these words alone."""

    def command(parts: Parts, folder: Path) -> list[str]:
        arrange(parts, folder)
        return ["evaluate", *(word.format(**parts._asdict()) for word in words), "--quiet"]

    return command


def files(**contents: bytes | str | dict | list):
    """Writes files; `__` in a name stands for a slash, `_DOT_` for a dot."""

    def arrange(parts: Parts, folder: Path) -> None:
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content) if isinstance(content, dict | list) else content
            path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return arrange


OUTPUTS = {
    "is a folder": ("taken/", "taken", "folder"),
    "under a file": ("taken", "taken/deep/numbers.json", "is a file"),
    "nothing": ("", "", "is a folder"),
    "blank": ("", " ", "not a valid file name"),
    "too long": ("", "n" * 300, "too long"),
    "in /proc": ("", "/proc/numbers.json", "MB free|is not writable"),
}
FOLDERS = {
    "is a file": ("taken", "taken", "is a file"),
    "under a file": ("taken", "taken/deep", "is a file"),
    "nothing": ("", "", "no name|is there|other files|folder"),
    "too long": ("", "n" * 300, "too long"),
    "in /proc": ("", "/proc/folder", "MB free|is not writable"),
}


def taken(name: str):
    def arrange(parts: Parts, folder: Path) -> None:
        if name.endswith("/"):
            (folder / name).mkdir()
        elif name:
            (folder / name).write_text("mine")

    return arrange


def output_cases() -> list[Case]:
    cases = [
        Case(f"evaluate/output {what}", evaluate("--output", path, arrange=taken(name)), says)
        for what, (name, path, says) in OUTPUTS.items()
    ]
    for option in ("report", "embeddings"):
        cases += [
            Case(f"evaluate/{option} {what}", evaluate(f"--{option}", path, arrange=taken(name)), says)
            for what, (name, path, says) in FOLDERS.items()
            if path
        ]
    theirs = {"a text": "mine", "a list": [1], "a training": {"metrics": {}, "stages": []}, "no text": GARBAGE}
    cases += [
        Case(f"evaluate/output over {what}", evaluate(arrange=files(numbers_DOT_json=content)), "holds no evaluation")
        for what, content in theirs.items()
    ]
    pages = {"no report": {"notes_DOT_txt": "mine"}, "another page": {"index_DOT_html": "<p>", "report_DOT_json": {}},
             "half a report": {"report_DOT_json": {}}}  # fmt: skip
    cases += [
        Case(
            f"evaluate/report over {what}",
            evaluate("--report", "page", arrange=files(**{f"page__{name}": text for name, text in contents.items()})),
            "holds other files and no report",
        )
        for what, contents in pages.items()
    ]
    return cases


def option_cases() -> list[Case]:
    useless = {
        "--foils_dir x": "foils_dir",
        "--foils_images x": "foils_images",
        "--foils captions --foils_dir x": "foils_dir",
        "--foils none --foils_images x": "foils_images",
        "--label_column x": "label_column",
        "--templates lines.txt": "templates",
        "--foils sugarcrepe": "needs foils_dir",
        "--foils winoground --foils_dir nowhere": "nowhere",
        "--foils nonsense": "invalid choice",
        "--foils scenes": "for the built-in scenes",
        "--correction nonsense": "invalid choice",
        "--correction qbnorm": "needs a training split",
        "--batch_size 0": "batch_size",
        "--batch_size -1": "batch_size",
        "--batch_size x": "batch_size",
        "--batch_size 1.5": "batch_size",
        "--num_workers -1": "num_workers",
        "--num_workers x": "num_workers",
        "--dtype int8": "dtype",
        "--split nowhere": "nowhere",
        "--split ../x": "no split",
        "--kind nonsense": "kind",
    }
    cases = [
        Case(
            f"evaluate/option {words}",
            evaluate(*words.split(), arrange=files(lines_DOT_txt="a {}")),
            says,
        )
        for words, says in useless.items()
    ]
    return [*cases, Case("evaluate/no model", bare(), "give one model or several")]


def template_cases() -> list[Case]:
    wrong = {
        "empty": ("", "is empty"),
        "blank": (" \n\n", "is empty"),
        "without a place": ("a photo\n", "lacks {}"),
        "second without": ("a {}\nphoto\n", "lacks {}"),
        "no text": (GARBAGE, "UTF-8"),
    }
    cases = [
        Case(
            f"evaluate/templates {what}",
            evaluate("--labelled", "{photographs}", "--templates", "lines.txt", arrange=files(lines_DOT_txt=content)),
            says,
        )
        for what, (content, says) in wrong.items()
    ]
    for what, path in (("missing", "nowhere.txt"), ("a folder", ".")):
        asked = evaluate("--labelled", "{photographs}", "--templates", path)
        cases.append(Case(f"evaluate/templates {what}", asked, "does not exist"))
    return cases


def labelled_cases() -> list[Case]:
    wrong: dict[str, tuple[dict, str]] = {
        "empty": ({"classes__notes_DOT_txt": "x"}, "holds no folders of images"),
        "one class": ({"classes__one__a_DOT_png": "x"}, "at least 2"),
        "saved data truncated": ({"classes__state_DOT_json": "{"}, "not a complete data set"),
        "saved data garbage": ({"classes__dataset_dict_DOT_json": GARBAGE}, "not a complete data set"),
        "saved data null": ({"classes__state_DOT_json": "null"}, "not a complete data set"),
        "saved splits missing": ({"classes__dataset_dict_DOT_json": {"splits": ["test"]}}, "not a complete data set"),
        "twice one name": ({"classes__a_b__x_DOT_png": "x", "classes__a-b__x_DOT_png": "x"}, "appears twice"),
    }
    cases = [
        Case(f"evaluate/labelled {what}", evaluate("--labelled", "classes", arrange=files(**contents)), says)
        for what, (contents, says) in wrong.items()
    ]
    asked = evaluate("--labelled", "classes", arrange=files(classes="x"))
    cases.append(Case("evaluate/labelled a file", asked, "is a file"))
    cases.append(Case("evaluate/labelled missing", evaluate("--labelled", "no/where/at/all"), "does not exist"))
    asked = evaluate("--labelled", "{photographs}", "--label_column", "kind")
    return [*cases, Case("evaluate/labelled folders with a column", asked, "label_column")]


JSON_WRONGS = {
    "missing": None, "empty": b"", "truncated": b'{"a": [', "garbage": GARBAGE, "deep": DEEP, "string": '"x"',
    "null": "null", "number": "3", "no entries": "{}", "numbers": "[1, 2]", "objects": "[{}]",
}  # fmt: skip
KINDS = {
    "vg_relation": ("visual_genome_relation.json", [ARO]),
    "vg_attribution": ("visual_genome_attribution.json", [ARO]),
    "sugarcrepe": ("replace_att.json", CREPE),
    "winoground": ("examples.jsonl", WINO),
}


def foils(kind: str, content: object):
    """The good files of published foils with one of another content; None for none."""

    def arrange(parts: Parts, folder: Path) -> None:
        place = folder / "foils"
        shutil.copytree(parts.photographs / "city", place)
        for name in CREPE_FILES if kind == "sugarcrepe" else ():
            (place / f"{name}.json").write_text(json.dumps(CREPE))
        target = place / KINDS[kind][0]
        target.unlink(missing_ok=True)
        if content is not None:
            text = json.dumps(content) if isinstance(content, dict | list) else content
            target.write_bytes(text if isinstance(text, bytes) else text.encode())

    return evaluate("--foils", kind, "--foils_dir", "foils", arrange=arrange)


def foil_cases() -> list[Case]:
    cases = [
        Case(f"evaluate/{kind} {what}", foils(kind, content), file.replace(".", r"\."))
        for kind, (file, _) in KINDS.items()
        for what, content in JSON_WRONGS.items()
    ]
    fields = {
        "image_path": [None, 3, [], "../../etc/x.png", "/etc/passwd", "", "nowhere.png", "x\0y"],
        "true_caption": [None, 3, {}],
        "false_caption": [None, []],
        "bbox_x": ["x", None, float("nan"), float("inf"), 1e300],
        "bbox_w": [0, -4, "3"],
        "relation_name": [None, 3],
    }
    cases += [
        Case(
            f"evaluate/vg_relation {field} {value!r:.20}",
            foils("vg_relation", [ARO | {field: value}]),
            rf"{field}|the box|points outside|give the name of a file|nowhere\.png",
        )
        for field, values in fields.items()
        for value in values
    ]
    cases += [
        Case(
            f"evaluate/winoground {field} {value!r:.20}",
            foils("winoground", WINO | {field: value}),
            rf"{field}|points outside|nowhere",
        )
        for field in ("image_0", "caption_1")
        for value in (None, 3, *(("../../x", "nowhere") if field == "image_0" else ()))
    ]
    return cases


def arrays(change: Callable[[dict[str, np.ndarray]], object], *words: str):
    """A folder of embeddings with something wrong in it."""

    def arrange(parts: Parts, folder: Path) -> None:
        rng = np.random.default_rng(0)
        given = {
            "image_embeds": rng.normal(size=(6, 4)).astype(np.float32),
            "text_embeds": rng.normal(size=(12, 4)).astype(np.float32),
            "text_to_image": np.arange(12) // 2,
        }
        change(given)
        place = folder / "arrays"
        place.mkdir()
        for name, array in given.items():
            if isinstance(array, bytes):
                (place / f"{name}.npy").write_bytes(array)
            else:
                np.save(place / f"{name}.npy", array, allow_pickle=array.dtype == object)

    return bare("arrays", "--output", "numbers.json", *words, arrange=arrange)


def beside(name: str, content: bytes):
    """Good arrays with a file of texts beside them."""
    good = arrays(lambda given: None)

    def command(parts: Parts, folder: Path) -> list[str]:
        words = good(parts, folder)
        (folder / "arrays" / name).write_bytes(content)
        return words

    return command


def setting(name: str, value: object):
    return lambda given: given.update({name: value})


def array_cases() -> list[Case]:
    wrong = {
        "text_embeds": [
            np.ones((12, 3), np.float32), np.ones(12, np.float32), np.ones((12, 4), np.int64), np.ones((0, 4)),
            np.full((12, 4), np.nan), np.zeros((12, 4)), np.ones((11, 4)), np.array([[{}]]), b"", b"garbage",
        ],
        "image_embeds": [np.ones((5, 4)), np.full((6, 4), np.inf), np.array(["x"]), b"\x93NUMPY"],
        "text_to_image": [
            np.arange(12), -np.ones(12, np.int64), np.ones(12), np.ones((12, 1), np.int64), np.arange(3), b"x",
        ],
    }  # fmt: skip
    cases = [
        Case(f"evaluate/arrays {name} {number}", arrays(setting(name, value)), f"{name}|not text|image_embeds")
        for name, values in wrong.items()
        for number, value in enumerate(values)
    ]
    cases += [
        Case(f"evaluate/arrays without {name}", arrays(lambda given, name=name: given.pop(name)), name)
        for name in ("text_embeds", "text_to_image")
    ]
    texts = {"captions.json": (GARBAGE, b"{}", b"[1]", b"[", DEEP.encode()), "captions.txt": (GARBAGE, b"one")}
    cases += [
        Case(f"evaluate/arrays {name} {content[:9]!r}", beside(name, content), name.replace(".", r"\.") + "|captions")
        for name, contents in texts.items()
        for content in contents
    ]
    cases += [
        Case(
            f"evaluate/embeddings file {what}",
            bare("a.safetensors", "--output", "numbers.json", arrange=files(a_DOT_safetensors=content)),
            r"a\.safetensors",
        )
        for what, content in {
            "empty": b"",
            "garbage": GARBAGE,
            "huge header": b"\xff" * 8,
            "nothing in it": EMPTY,
        }.items()
    ]
    useless = ("--foils captions", "--labelled x", "--correction qbnorm", "--embeddings x", "--device cpu",
               "--dtype float16", "--trust_remote_code", "--data_dir x", "--split test", "--features x")  # fmt: skip
    return cases + [
        Case(f"evaluate/arrays with {words}", arrays(lambda given: None, *words.split()), words.split()[0])
        for words in useless
    ]


CASES = [
    *output_cases(),
    *option_cases(),
    *template_cases(),
    *labelled_cases(),
    *foil_cases(),
    *array_cases(),
]

test_one_clear_line = one_clear_line(CASES)
