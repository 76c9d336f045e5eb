"""Row losses in a file of one's own: refused in one line, or equal to their formula in every execution."""

import math
from pathlib import Path

import pytest
import torch

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.losses_vse import OBJECTIVES, contrastive_loss, objective
from hf_vse.objectives.execution import Execution, choose_execution, execute_loss
from hf_vse.objectives.own import load_objective
from tests.objectives.batches import OPTIONS, Batch, assert_same

EXAMPLE = Path(__file__).parents[2] / "scripts" / "examples" / "objectives" / "dcl.py"
HEAD = "from hf_vse.model.losses_vse import *\nimport hf_vse.model.losses_vse as given\nimport torch\n"
PLAIN = "given.hinge_max(scores, positives, excluded, margin=margin)"


def defined(body: str, arguments: str = "scores, positives, excluded, *, margin") -> str:
    return f"{HEAD}def mine({arguments}):\n    {body}\n"


FINE = defined(f"return {PLAIN}")


@pytest.fixture(autouse=True)
def same_table_afterwards():
    known = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(known)


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def naive_dcl(images, texts, image_ids, temperature: float) -> torch.Tensor:
    """log sum over negatives of e^{s/t}, minus p/t; zero without negatives; the mean of each direction, added."""
    rows = []
    for queries, candidates in ((images, texts), (texts, images)):
        for i, query in enumerate(queries):
            scores = [sum(a * b for a, b in zip(query, each, strict=True)) for each in candidates]
            negatives = [s for j, s in enumerate(scores) if j != i and (not image_ids or image_ids[j] != image_ids[i])]
            total = sum(math.exp(each / temperature) for each in negatives)
            rows.append(math.log(total) - scores[i] / temperature if negatives else 0.0)
    return sum(rows) / len(images)


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3], [7, 7, 7, 7, 7]])
def test_the_example_is_its_formula(ids):
    name = load_objective(f"{EXAMPLE}:dcl")
    images, texts = (torch.nn.functional.normalize(torch.randn(5, 3), dim=1) for _ in "it")
    images.requires_grad_()
    image_ids = None if ids is None else torch.tensor(ids)
    found = contrastive_loss(images, texts, loss_type=name, temperature=0.3, image_ids=image_ids)
    assert found.item() == pytest.approx(naive_dcl(images.tolist(), texts.tolist(), ids, 0.3), rel=1e-4)
    found.backward()
    assert images.grad.isfinite().all() and bool(images.grad.any()) == (ids != [7] * 5)


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("execution", [Execution("dense"), Execution("chunked", chunk_size=3), Execution()])
def test_every_execution_that_takes_row_losses_gives_the_same(execution, ids, monkeypatch):
    monkeypatch.setattr("hf_vse.objectives.execution.SMALL_MATRIX", 4)  # so that `auto` has to choose
    name = load_objective(f"{EXAMPLE}:dcl")
    batch = Batch(11, ids)
    found = batch.loss_and_gradients(execute_loss, execution=execution, loss_type=name)
    assert_same(found, batch.reference(loss_type=name))


@pytest.mark.parametrize("execution", [Execution("streamed"), Execution("fused"), Execution(negatives="ring")])
def test_executions_that_need_a_stream_refuse(execution):
    with pytest.raises(ValueError, match=r"'dcl.py:dcl@\w{12}' has no stream.*chunked or dense"):
        choose_execution(execution, load_objective(f"{EXAMPLE}:dcl"), 128, torch.device("cpu"))


def test_settings_are_those_that_the_function_names(tmp_path):
    name = load_objective(f"{write(tmp_path, FINE)}:mine")
    assert OBJECTIVES[name].settings == ("margin",)
    batch = Batch(7)
    found = batch.loss_and_gradients(contrastive_loss, loss_type=name)
    expected = batch.loss_and_gradients(contrastive_loss, loss_type="hinge_max")
    torch.testing.assert_close(found[0], expected[0] / 7)  # a mean, where hinge_max is a sum
    assert VSEConfig(loss_type=name).loss_type == name and str(tmp_path) not in name


def test_another_version_of_a_file_is_another_objective(tmp_path):
    path = write(tmp_path, FINE)
    first = load_objective(f"{path}:mine")
    pinned = f"{path}:mine@{first.partition('@')[2]}"
    assert load_objective(pinned) == first
    write(tmp_path, FINE.replace("return ", "return 2 * "))
    second = load_objective(f"{path}:mine")
    assert second != first and second.partition("@")[0] == first.partition("@")[0] == "mine.py:mine"
    doubled, single = (
        contrastive_loss(torch.eye(3), torch.eye(3).flip(0), loss_type=each) for each in (second, first)
    )
    assert doubled == 2 * single > 0
    with pytest.raises(ValueError, match=r"mine.py has changed, its digest is now \w{12}: restore the file"):
        load_objective(pinned)


def test_a_name_in_a_configuration_executes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "raise SystemExit('executed')")
    config = VSEConfig(loss_type="mine.py:mine@0123456789ab")
    with pytest.raises(ValueError, match=r"'mine.py:mine@0123456789ab' is a function in a file, which is not part of"):
        objective(config.loss_type)
    with pytest.raises(ValueError, match="loss_type must be one of nce"):
        VSEConfig(loss_type="mine.txt:mine")


REFUSED = {
    "syntax": ("def mine(:", "mine.py cannot be executed (SyntaxError: "),
    "import": ("import nowhere_to_be_found", "cannot be executed (ModuleNotFoundError: No module named"),
    "exit": ("raise SystemExit(3)", "mine.py cannot be executed (SystemExit: 3)"),
    "no function": (HEAD + "def other(): pass", "mine.py has no function 'mine'; its functions are: other"),
    "no functions": ("mine = 3", "mine.py has no function 'mine'; its functions are: none"),
    "two arguments": (
        defined("return scores", "scores, positives, *, margin"),
        "is not a row loss: its arguments must",
    ),
    "positional": (defined("return scores", "scores, positives, excluded, margin"), "must be (scores, positives, exc"),
    "any": (defined("return scores", "*args, **kwargs"), "is not a row loss"),
    "unknown": (defined("return scores", "scores, positives, excluded, *, alpha"), "'alpha' is not a setting"),
    "default": (
        defined("return scores", "scores, positives, excluded, *, margin=0.1"),
        "margin comes from the recipe: give it no default",
    ),
    "scalar": (defined(f"return {PLAIN}.mean()"), "mine returned torch.float32 (); a row loss returns one number for"),
    "matrix": (defined("return scores"), "returned torch.float32 (4, 6); a row loss returns one number"),
    "none": (defined("scores + 1"), "returned NoneType; a row loss returns"),
    "whole": (defined("return positives"), "returned torch.int64 (4,)"),
    "nan": (defined(f"return {PLAIN} / 0"), "returned a number that is not finite"),
    "no negatives": (
        defined("return margin + given.hardest_negative(scores, positives, excluded)"),
        "a query without negatives, for example, needs a finite loss too",
    ),
    "raises": (defined("return scores[7]"), "fails on a small batch (IndexError: "),
    "own error": (defined("raise ValueError('so')"), "fails on a small batch (ValueError: so)"),
    "other queries": (defined(f"return {PLAIN} + scores.mean()"), "depends on other queries"),
    "chance": (defined(f"return {PLAIN} + torch.rand(len(scores))"), "or on chance"),
    "excluded": (
        defined("return given.hinge_max(scores, positives, None, margin=margin)"),
        "candidates in `excluded`",
    ),
    "detached": (defined(f"return {PLAIN}.detach()"), "the gradient by the scores is zero"),
    "scaled infinity": (
        defined("return (given.negative_scores(scores, positives, excluded) * margin).exp().sum(dim=1)"),
        "so scale the scores before negative_scores",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_row_loss_is_refused_in_one_line(case, tmp_path):
    text, message = REFUSED[case]
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as refused:
        load_objective(f"{path}:mine")
    assert message in str(refused.value) and path in str(refused.value) and "\n" not in str(refused.value)
    assert not any(name.startswith("mine.py") for name in OBJECTIVES)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the file .*nowhere.py does not exist: give its path"):
        load_objective(f"{tmp_path}/nowhere.py:mine")
    with pytest.raises(ValueError, match="'nce' names no function in a file: write file.py:function"):
        load_objective("nce")


def test_what_fails_later_is_told(tmp_path):
    text = defined(f"return {PLAIN} if len(scores) < 5 else {PLAIN}.log()")
    name = load_objective(f"{write(tmp_path, text)}:mine")
    with pytest.raises(ValueError, match="mine.py:mine returned a number that is not finite"):
        contrastive_loss(torch.eye(6), torch.eye(6), loss_type=name, margin=0.1)
    assert contrastive_loss(torch.eye(4), torch.eye(4), loss_type=name, **{"margin": OPTIONS["margin"]}) == 0
