"""The common model tests of transformers, from the folder of its source distribution or of a checkout."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import transformers

VARIABLE = "HF_VSE_TRANSFORMERS_TESTS"
PACKAGE = "tests_of_transformers"  # theirs is called `tests`, as ours
# Files that the common tests import and that only a checkout has, not the source distribution.
STAND_INS = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {"output_attentions": True, "chunk_size_feed_forward": 5}
    },
}


def common_tests(name: str) -> ModuleType:
    """A module of their folder `tests`; skips the module that asks where the variable is not set."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} does not name the source of transformers (make test-peers)", allow_module_level=True)
    source = Path(os.environ[VARIABLE])
    if f'__version__ = "{transformers.__version__}"' not in (source / "src/transformers/__init__.py").read_text(
        "utf-8"
    ):
        raise ValueError(f"{VARIABLE}: {source} is not transformers {transformers.__version__}, which is installed")
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = [str(source / "tests")]
    for path, content in STAND_INS.items():
        if not (source / "tests" / f"{path.replace('.', '/')}.py").exists():
            module = sys.modules[f"{PACKAGE}.{path}"] = ModuleType(path)
            vars(module).update(content)
            sys.modules.setdefault(f"{PACKAGE}.{path.split('.')[0]}", ModuleType(path.split(".")[0]))
    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        return importlib.import_module(f"{PACKAGE}.{name}")
