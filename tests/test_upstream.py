"""Private names of other libraries that this code uses, and what breaks when a release drops one.

Nothing else may be used: add a name only where there is no public one.
"""

import ast
from functools import cache
from inspect import signature
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

ROOT = Path(__file__).parents[1]

DATASET = {
    "_indices": "features, groups and frozen towers read the rows of a split of which rows were selected",
    "_fingerprint": "frozen towers name the cache of a split that they enlarge",
}
TRAINER = {
    "_determine_best_metric": "the untouched model counts as the best so far",
    "_evaluate": "a resumed run does not measure the untouched model again",
    "_finish_current_push": "a push at the end waits for the one before",
    "_init_training_state": "a stream is resumed where it stopped",
    "_load_best_model": "the best checkpoint of a run with adapters is loaded as an ordinary model",
    "_load_from_checkpoint": "adapters, averaged weights and the queue of negatives are resumed",
    "_push_from_checkpoint": "checkpoints are published with card and curves",
    "_save": "a model with adapters is saved as an ordinary one, the adapters beside it",
    "_save_checkpoint": "averaged weights and the queue of negatives are saved",
    "_train_batch_size": "batches are as large as auto_find_batch_size found",
}
MODEL = {
    "_init_weights": "fresh heads and towers start as the papers say",
    "_load_from_state_dict": "weights of version 0.1 are read by load_state_dict",
    "_supports_flash_attn": "attn_implementation reaches the towers",
    "_supports_flex_attn": "attn_implementation reaches the towers",
    "_supports_sdpa": "attn_implementation reaches the towers",
}
PAGE = {"_queue": "the Space bounds the answers that gradio keeps for each visitor"}
ARGUMENTS = {
    "_frontend": "the Space starts without a request to its own page",
    "_internal_call": "a model that is saved on the way to a push is not pushed by that",
}
NORMS = {"_BatchNorm": "frozen statistics: the norms of every number of dimensions are found by their base class"}
LISTED = DATASET.keys() | TRAINER.keys() | MODEL.keys() | PAGE.keys() | NORMS.keys()
QUEUE = ("pending_messages_per_session", "pending_event_ids_session")  # public in name, documented nowhere

NOT_OF_A_LIBRARY = {"_replace", "_asdict", "_exit", "_ArgumentGroup", "_ActionsContainer"}  # of Python itself


def missing(thing: object, names: dict[str, str]) -> list[str]:
    return [f"{name}: {what_breaks}" for name, what_breaks in names.items() if not hasattr(thing, name)]


def test_private_names_are_there(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert not missing(Dataset.from_dict({"row": [0]}), DATASET)
    assert not missing(Trainer(torch.nn.Linear(1, 1), args), TRAINER)
    assert not missing(PreTrainedModel, MODEL)
    assert not missing(torch.nn.modules.batchnorm, NORMS)


def test_private_names_of_the_page_are_there():
    gradio = pytest.importorskip("gradio")
    page = gradio.Blocks()
    page.queue()
    assert not missing(page, PAGE)
    assert not missing(page._queue, dict.fromkeys(QUEUE, PAGE["_queue"]))


def test_private_arguments_are_there():
    assert "_internal_call" in signature(Trainer.save_model).parameters, ARGUMENTS["_internal_call"]
    launch = pytest.importorskip("gradio").Blocks.launch
    assert "_frontend" in signature(launch).parameters, ARGUMENTS["_frontend"]


@cache
def code() -> list[ast.AST]:
    """Of the package, the Space and the scripts."""
    files = [path for room in ("hf_vse", "spaces_demo", "scripts") for path in (ROOT / room).rglob("*.py")]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_in_class_bodies() -> set[str]:
    body = [each for node in code() if isinstance(node, ast.ClassDef) for each in node.body]
    methods = {each.name for each in body if isinstance(each, ast.FunctionDef)}
    return methods | {ast.unparse(target) for each in body if isinstance(each, ast.Assign) for target in each.targets}


def test_private_names_that_are_overridden_are_listed():
    for name in filter(is_private, names_in_class_bodies()):
        assert name in LISTED or not (hasattr(Trainer, name) or hasattr(PreTrainedModel, name)), name


def private_names_of_others() -> set[str]:
    """Used on anything and defined by nobody here, or used on `super()`."""
    used, defined = set(), set()
    for node in code():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.attr if isinstance(node, ast.Attribute) else node.id)
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of_parent = isinstance(node.value, ast.Call) and ast.unparse(node.value).startswith("super(")
            used.add((node.attr, of_parent))
    return {name for name, of_parent in used if of_parent or name not in defined} - NOT_OF_A_LIBRARY


def test_private_arguments_that_are_given_are_listed():
    """As keywords, or as the keys of a dictionary, which may be passed on."""
    given = {node.arg for node in code() if isinstance(node, ast.keyword) and is_private(node.arg or "")}
    keys = [key for node in code() if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)]
    given |= {key.value for key in keys if isinstance(key.value, str) and is_private(key.value)}
    assert given - {"_name_or_path", "_type", "_1k_folds"} == ARGUMENTS.keys()  # those three are names in files


def test_private_modules_and_names_are_not_imported():
    imported = [node for node in code() if isinstance(node, ast.ImportFrom | ast.Import)]
    names = {part for node in imported for alias in node.names for part in alias.name.split(".")}
    names |= {part for node in imported if isinstance(node, ast.ImportFrom) for part in (node.module or "").split(".")}
    assert not set(filter(is_private, names))


def test_private_names_that_are_used_are_listed():
    assert private_names_of_others() <= LISTED
    assert {"_indices", "_queue", "_save"} <= private_names_of_others()
