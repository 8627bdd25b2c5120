"""What an export needs of memory, in the geometry of ViT-L: less than 1.3 times the file."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import vitl
from curia2_jax.export import huggingface
from curia2_jax.training import checkpoints
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state

ROOT = pathlib.Path(__file__).resolve().parents[2]


# The kernel's own account of this process alone: that of `wait4` counts what the parent had when it forked.
MEASURED = """
import atexit, re, runpy, sys
status = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
atexit.register(lambda: print("peak", status()))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def peak_of(line: list[str]) -> int:
    """Bytes that a command had resident at most, mapped files counted."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *line], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)[1])


@pytest.mark.soak
def test_an_export_takes_less_than_a_third_more_than_the_file(tmp_path):
    config = json.loads(json.dumps(vitl.get_config().to_dict()))
    draw = np.random.default_rng(0)
    shapes = abstract_state(recipe_from(config)).params["backbone"]
    backbone = jax.tree.map(lambda a: draw.standard_normal(a.shape, np.float32), shapes)
    checkpoints.save_init(tmp_path / "run", {"backbone": backbone}, {"corpus": "0" * 64})
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    del backbone
    peak = peak_of(["launch/convert.py", f"--checkpoint={tmp_path / 'run'}", f"--output={tmp_path / 'hf'}"])
    assert peak < 1.3 * (tmp_path / "hf" / huggingface.WEIGHTS).stat().st_size
