"""Runs a script several times in one launch: starting its processes takes far longer than a tiny training.

torchrun --nproc-per-node 2 several_runs.py RUNS      # a JSON file: a list of [SCRIPT, ARGUMENT, ...]
"""

import json
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.argv = command
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as leaving:
            if leaving.code:
                raise
