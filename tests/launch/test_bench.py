"""The benchmark measures what it says, on a model so small that the figures mean nothing."""

import json
import pathlib
import subprocess
import sys

import pytest

from configs import demo, vitl, vits
from curia2_jax.curiabench import encode_rate, probe_clock
from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.parallel import compiler
from curia2_jax.planning import clocks
from curia2_jax.planning.torch_peer.bench import random_masks
from curia2_jax.training.recipe import recipe_from
from tests import small_benchmark
from tests.data.small_corpus import write_small_corpus
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    monkeypatch.setattr(compiler, "options", lambda platform: options)


def test_the_step():
    recipe = recipe_from(tiny_config(data__global_batch=32))
    out = clocks.time_step(recipe, 2, with_crops=False)
    times = out["step_s"]
    assert 0 < times["min"] <= times["median"] and len(times["all"]) == 2
    assert out["images_per_s_per_device"] == pytest.approx(32 / times["median"] / 8)
    assert out["compile_s"] > 0 and out["peak_bytes_per_device"] > 0
    assert out["mfu"] is None  # a CPU has no line in the table of peaks
    assert out["tflops_per_device"] * 8 * times["median"] == pytest.approx(32 * sum(out["tflop_per_image"].values()))


@pytest.mark.soak
def test_noise_has_the_canvas_of_the_corpus_that_follows_it(tmp_path):
    write_small_corpus(tmp_path / "corpus")
    recipe = recipe_from(tiny_config(data__global_batch=32, data__corpus=str(tmp_path / "corpus"), data__canvas=0))
    assert clocks.time_step(recipe, 1)["data_wait_s"] >= 0  # the program takes both


@pytest.mark.soak
def test_the_probe_needs_no_config(tmp_path):
    line = [sys.executable, "launch/bench.py", "--what=probe", "--rows=200", "--steps=1", f"--json={tmp_path}/a.json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "probe_s min" in done.stdout and json.loads((tmp_path / "a.json").read_text())["rows"] == 200


def test_the_probe():
    out = probe_clock.seconds(100, 1)
    assert out["settings"]["converged"] and (out["width"], out["classes"]) == (768, 54)
    assert out["probe_s"]["min"] > 0


def test_views_and_losses():
    recipe = recipe_from(tiny_config())
    assert clocks.time_augment(recipe, 1)["images_per_s"] > 0
    losses = clocks.time_losses(recipe, 1)
    assert losses.keys() == {"dino sinkhorn", "dino", "ibot sinkhorn", "ibot", "koleo", "invariance", "sigreg"}
    assert all(row["median_s"] > 0 for row in losses.values())


def test_encoding_beside_the_backbone_alone(tmp_path, monkeypatch):
    """Every slice is counted once, in both rounds; the ratio is that of the two rates, and the stages are all of it."""
    monkeypatch.setitem(encode_rate.SAMPLES, "cpu", 40)
    out = encode_rate.measure(str(small_benchmark.write_model(tmp_path / "model")))
    assert out["precision"] == "float32" and out["workers"] == 0 and len(out["backbone"]["rounds"]) == 2
    for kind in ("plain", "masked"):
        assert out[kind]["slices"] == 40 and out[kind]["seconds"] > 0
        assert out[kind]["slices_per_s"] == pytest.approx(40 / out[kind]["seconds"])
        assert out[kind]["ratio"] == pytest.approx(out[kind]["slices_per_s"] / max(out["backbone"]["rounds"]))
        main = {name: share for name, share in out[kind]["share_of_time"].items() if name.startswith("main")}
        assert len(main) == 4 and 0.9 < sum(main.values()) <= 1.01
        used = out[kind]["core_ms_per_slice"]
        assert {
            "worker: read",
            "worker: hash",
            "worker: prepare",
            "worker: masks",
            "main: sum",
            "receive: to the device",
        } < used.keys()
        assert used["main: encode and pool"] < used["this process"] and used["workers"] == 0
    limit, backbone = out["on_the_device"], max(out["backbone"]["rounds"])
    alone, both = limit["slices_per_s"], 1 / (1 / limit["slices_per_s"] + 1 / backbone)
    assert alone > 0 and limit["ratio_at_most"] == pytest.approx(both / backbone)
    assert 0 < max(out["bfloat16"].values()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/nowhere.py"], "--config=configs/nowhere.py: cannot be read"),
        (["--config=configs/demo.py", "--json=/nowhere/a.json"], "--json=/nowhere/a.json: its folder is not there"),
        (["--config=configs/demo.py", "--what=loader", "--against=torch"], "write --what=step"),
        (["--config=configs/demo.py", "--nifti=studies"], "write --what=loader"),
        (["--config=configs/demo.py", "--model=here"], "write --what=encode"),
    ],
)
def test_a_mistake_is_one_line(arguments, words):
    line = [sys.executable, "launch/bench.py", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and words in done.stderr, done.stderr


@pytest.mark.parametrize("config", [demo, vits, vitl])
def test_both_sides_of_the_comparison_predict_as_many_patches(config):
    """Whatever the masks of a config: its own kept the demo at more than twice the patches of the other side."""
    recipe = recipe_from(clocks.as_compared(config.get_config().to_dict()))
    images, patches = recipe.data.global_batch, recipe.model.grid**2
    ours = images // recipe.data.group_size * masked_per_group(recipe.data.group_size, patches, recipe.masks)
    assert ours == int(random_masks(2 * images, patches).sum())


@pytest.mark.soak
def test_against_torch(tmp_path):
    line = [
        sys.executable,
        "launch/bench.py",
        "--config=configs/vits.py",
        "--against=torch",
        f"--json={tmp_path}/a.json",
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = json.loads((tmp_path / "a.json").read_text())
    assert out["ratio of best steps"] <= 1.10
