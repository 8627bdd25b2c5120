"""What an export and an import need of memory, in the geometry of ViT-L: less than 1.3 times the file."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest

from configs import vitl
from curia2_jax.export import huggingface, tensors_file
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of an export of random weights, bytes of its weights, what the export had resident)."""
    folder = tmp_path_factory.mktemp("vitl")
    config = json.loads(json.dumps(vitl.get_config().to_dict()))
    draw = np.random.default_rng(0)
    shapes = abstract_state(recipe_from(config)).params["backbone"]
    backbone = jax.tree.map(lambda a: draw.standard_normal(a.shape, np.float32), shapes)
    checkpoints.save_items(folder / "run", 0, {"teacher": {"backbone": backbone}}, {"corpus": "0" * 64})
    (folder / "run" / "config.json").write_text(json.dumps(config))
    del backbone
    peak = peak_of(["launch/convert.py", f"--checkpoint={folder / 'run'}", f"--output={folder / 'hf'}"])
    yield folder / "hf", (folder / "hf" / huggingface.WEIGHTS).stat().st_size, peak
    shutil.rmtree(folder)


@pytest.mark.soak
def test_an_export_takes_less_than_a_third_more_than_the_file(exported):
    _, size, peak = exported
    assert peak < 1.3 * size


@pytest.mark.soak
def test_an_import_takes_less_than_a_third_more_than_the_file(exported, tmp_path):
    """In memory; on the disk it is one copy, compressed."""
    folder, size, _ = exported
    weights = tmp_path / "weights"
    peak = peak_of(["launch/convert.py", f"--from-pretrained={folder}", f"--output={weights}"])
    assert peak < 1.3 * size
    assert sum(path.stat().st_size for path in weights.rglob("*") if path.is_file()) < size
    shutil.rmtree(weights)


def test_an_import_has_few_parameters_in_memory(tmp_path):
    """The one that is read, and what JAX has not let go yet: one, or two where other programs have the cores."""
    alive, most = [], []

    def made() -> np.ndarray:
        array = np.ones((3, 40), np.float32)
        alive.append(weakref.ref(array))
        most.append(sum(one() is not None for one in alive))
        return array

    params = {"backbone": {f"w{i}": tensors_file.Later((3, 40), made) for i in range(9)}}
    checkpoints.save_items(tmp_path, 0, {"teacher": params}, {})
    assert len(alive) == 18 and max(most) <= 3
    found = checkpoints.restore_item(tmp_path, 0, "teacher")["backbone"]
    assert all(np.array_equal(leaf, np.ones((3, 40))) for leaf in found.values())
