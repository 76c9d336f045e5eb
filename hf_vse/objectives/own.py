"""Row losses of one's own: `my_loss.py:my_row_loss` in the place of a name of the table.

    def my_row_loss(scores, positives, excluded, *, temperature, margin):
        '''max(0, m + n - p) / t

        What it means. Formula and words are for the card.
        '''
        ...  # (Q,)

`hf_vse.model.losses_vse` describes the arguments and the symbols. Of `SETTINGS` (temperature, margin, logit_bias, ...)
a function names those that it uses. A configuration stores the name of the file, the function and the beginning of
the file's SHA-256 digest, so a changed file is another objective. Only `load_objective` executes a file, and it is
called only with names that the user has written. A name in a stored configuration executes nothing.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hf_vse.model.losses_vse import OBJECTIVES, OWN, SETTINGS, Objective

KNOWN_AS = "a function in a file that is not part of the model"
TRIAL = {"temperature": 0.1, "margin": 0.2, "logit_bias": 0.5}
TRIAL |= {"positive_margin": 0.1, "hardness": 1.0, "negatives_kept": 2.0, "false_negative_gap": 0.5}
ARGUMENTS = "(scores, positives, excluded, *, temperature, margin, ...)"


def is_own(loss_type: Any) -> TypeGuard[str]:
    """Whether a value names a function in a file."""
    return isinstance(loss_type, str) and OWN.fullmatch(loss_type) is not None


def without_folder(loss_type: Any) -> Any:
    """The name as configurations have it."""
    return re.split(r"[\\/]", loss_type)[-1] if is_own(loss_type) else loss_type


def load_objective(loss_type: str) -> str:
    """Executes a file and adds one of its functions to the objectives of this process.

    Args:
        loss_type: `path/to/file.py:function`; with `@` and a digest, only that version of the file.

    Returns:
        The name of the objective, `file.py:function@digest`: the `loss_type` for `VSEConfig`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has changed or fails, or the function is missing or is not a row loss.
    """
    asked = OWN.fullmatch(loss_type)
    if asked is None:
        raise ValueError(f"loss_type {loss_type!r:.80} names no function in a file: write file.py:function")
    path, function = Path(asked["file"]), asked["function"]
    if not path.is_file():
        raise FileNotFoundError(f"loss_type {loss_type!r:.200}: the file {path} does not exist: give its path")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()[:12]
    if asked["digest"] not in (None, digest):
        raise ValueError(
            f"loss_type {loss_type!r:.200}: {path} has changed, its digest is now {digest}: restore the file, or "
            f"leave out '@{asked['digest']}' and give a new output_dir"
        )
    name = f"{path.name}:{function}@{digest}"
    if name not in OBJECTIVES:
        row_loss = find_function(run_file(path, source), function, path)
        check_signature(row_loss, f"{path}:{function}")
        chosen = Objective(checked(row_loss, f"{path}:{function}"), known_as=KNOWN_AS, may_collapse=True)
        try_out(chosen, f"{path}:{function}")
        OBJECTIVES[name] = chosen
    return name


def run_file(path: Path, source: bytes) -> ModuleType:
    """The module that a file makes, from the bytes whose digest was taken."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(source, module.__dict__)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be executed ({error_line(error)}): mend it") from error
    return module


def find_function(module: ModuleType, function: str, path: Path) -> Callable[..., Tensor]:
    found = getattr(module, function, None)
    if inspect.isfunction(found):
        return found
    there = [name for name, each in vars(module).items() if inspect.isfunction(each) and each.__module__ == path.stem]
    raise ValueError(f"{path} has no function {function!r}; its functions are: {', '.join(there) or 'none'}")


def check_signature(row_loss: Callable[..., Tensor], name: str) -> None:
    """Raises ValueError for arguments that no caller would give, or that would silently keep their default."""
    parameters = inspect.signature(row_loss).parameters.values()
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(positional) != 3 or any(each.kind is each.VAR_POSITIONAL for each in parameters):
        raise ValueError(f"{name}{inspect.signature(row_loss)} is not a row loss: its arguments must be {ARGUMENTS}")
    for each in parameters:
        if each.kind is not each.KEYWORD_ONLY:
            continue
        if each.name in SETTINGS and each.default is not each.empty:
            raise ValueError(f"{name}: {each.name} comes from the recipe: give it no default in the function")
        if each.name not in SETTINGS and each.default is each.empty:
            raise ValueError(
                f"{name}: {each.name!r} is not a setting of an objective ({', '.join(SETTINGS)}): give it a default"
            )


def checked(row_loss: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """The same function, which raises ValueError where it returns anything but a finite number for each query."""

    @functools.wraps(row_loss)
    def rows(scores: Tensor, positives: Tensor, excluded: Tensor | None, **settings: Any) -> Tensor:
        found = row_loss(scores, positives, excluded, **settings)
        if not isinstance(found, Tensor) or found.shape != positives.shape or not found.is_floating_point():
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name} returned {got}; a row loss returns one number for each query, {(len(scores),)}")
        if not found.isfinite().all() and scores.isfinite().all():
            raise ValueError(
                f"{name} returned a number that is not finite; a query without negatives, for example, needs a finite "
                "loss too"
            )
        return found

    return rows


def try_out(chosen: Objective, name: str) -> None:
    """Raises ValueError where the function fails on a small batch or does not do what every row loss must.

    Chunks and processes compute some rows of the scores at a time, so a row must not depend on the others. Candidates
    in `excluded` show the query's image, so they must not count.
    """
    generator = torch.Generator().manual_seed(0)
    scores = (2 * torch.rand(4, 6, generator=generator) - 1).requires_grad_()
    positives = torch.tensor([2, 0, 5, 3])
    excluded = torch.zeros(4, 6, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 1:] = excluded[3, 5] = True  # the second query has no negatives
    settings = {name: torch.tensor(value, requires_grad=True) for name, value in TRIAL.items()}
    try:
        chosen.rows(scores, positives, None, settings)
        rows = chosen.rows(scores, positives, excluded, settings)
        parts = [slice(place, place + 1) for place in range(4)]
        single = [chosen.rows(scores[part], positives[part], excluded[part], settings) for part in parts]
        moved = chosen.rows(torch.where(excluded, -scores, scores), positives, excluded, settings)
        inputs = [scores, *settings.values()]
        gradients = torch.autograd.grad(rows.sum(), inputs, materialize_grads=True) if rows.requires_grad else None
    except Exception as error:  # whatever a user's function may raise
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        raise ValueError(f"{name} fails on a small batch ({error_line(error)}): mend it") from error
    if not torch.allclose(torch.cat(single), rows, rtol=1e-4, atol=1e-5):
        raise ValueError(f"{name}: the loss of a query depends on other queries, or on chance: use its own row alone")
    if not torch.allclose(moved, rows, rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"{name}: candidates in `excluded` count, which show the query's image: leave them out, for example by "
            "negative_scores of hf_vse.model.losses_vse"
        )
    if gradients is None or not gradients[0].any():
        raise ValueError(f"{name}: the gradient by the scores is zero, so nothing would be learned")
    if not all(each.isfinite().all() for each in gradients):
        raise ValueError(
            f"{name}: a gradient by the scores or by a setting is not finite; minus infinity must not be multiplied "
            "or divided, so scale the scores before negative_scores"
        )


def error_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
