"""The command that asks what a run has learned: the weights it compares with, the pixels it shows, what it prints."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.curia_image_processor import CuriaImageProcessor
from curia2_jax.data.readers import phantom
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import init_state
from launch import learned
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_baseline_is_what_the_run_itself_began_with():
    recipe = dataclasses.replace(recipe_from(tiny_config()), seed=3)
    first = jax.jit(lambda: init_state(jax.random.key(3), recipe).teacher["backbone"])()
    for ours, theirs in zip(jax.tree.leaves(learned.began(recipe)), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("is_ct", [True, False])
def test_a_slice_is_shown_as_the_exported_processor_shows_it(is_ct):
    """To the accuracy of two resamplings: the published one goes by PIL's."""
    rng = np.random.default_rng(0)
    one = np.cumsum(np.cumsum(rng.normal(size=(40, 40)), 0), 1) * 20 - 900
    canvas = np.zeros((1, 48, 48), np.int16)
    canvas[0, :40, :40] = one
    found = learned.pixels(jnp.asarray(canvas), jnp.array([[40, 40]], jnp.int32), jnp.array([is_ct]), 32)
    processor = CuriaImageProcessor(crop_size=32)
    expected = processor(canvas[0, :40, :40].astype(np.float32), clip_below_air=is_ct, return_tensors="pt")
    np.testing.assert_allclose(found[0, ..., 0], expected["pixel_values"][0, 0].numpy(), atol=2e-3)


def command(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.soak
def test_a_run_is_asked_and_studies_without_labels_are_not(tmp_path):
    phantom.write_studies(tmp_path / "studies", 6, seed=3, size=48)
    corpus = tmp_path / "corpus"
    assert command("launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={corpus}").returncode == 0
    small = {"model.width": 32, "model.heads": 2, "model.depth": 2, "heads.hidden": 32, "data.global_batch": 16,
             "crops.global_size": 32, "crops.local_size": 16, "data.corpus": corpus}  # fmt: skip
    line = [f"--config.{key}={value}" for key, value in small.items()]
    done = command("launch/main.py", "--config=configs/demo.py:2", f"--workdir={tmp_path / 'run'}", *line)
    assert done.returncode == 0 and "  nats " in done.stdout and "at the start: attention entropy" in done.stdout
    done = command("launch/learned.py", f"--run={tmp_path / 'run'}", f"--data={corpus}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "3 patients to learn from, 3 to test" in lines[0]
    assert [text[:25].strip() for text in lines[2:6]] == ["structures present, AUROC"] * 2 + [
        "height in the scan, R squ"
    ] * 2
    assert lines[-1].startswith("By its class token, without masks, the trained backbone is ")
