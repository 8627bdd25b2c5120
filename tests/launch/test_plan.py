"""Planning: arithmetic that is known from elsewhere, what fits and what to change, and the command itself."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from configs import vitg, vitl
from curia2_jax.errors import UserError
from curia2_jax.planning import changes, chips, estimates
from curia2_jax.planning.chips import target
from curia2_jax.planning.forecast import forecast
from curia2_jax.training.recipe import recipe_from

ROOT = pathlib.Path(__file__).resolve().parents[2]


def recipe_of(module, **changes):
    c = module.get_config().to_dict()
    for key, value in changes.items():
        section, name = key.split("__")
        c[section][name] = value
    return recipe_from(c)


@pytest.mark.parametrize(
    ("remat", "mib"),
    [("nothing_saveable", 0), ("attn_out", 31.2), ("qkv,attn_out", 121.2), ("qkv,attn_out,ffn_hidden", 281.2),
     ("dots_with_no_batch_dims_saveable", 312.4), ("dots_with_no_batch_dims_saveable,attn_out", 343.6),
     ("dots_saveable", 583 - 30)],
)  # fmt: skip
def test_residuals_of_a_remat_policy(remat, mib):
    """MiB an image that 40 blocks of ViT-g keep at 257 tokens in bfloat16, as counted in jaxprs of such a model with
    attention as one kernel (`dots_saveable` there keeps scores as well)."""
    model = dataclasses.replace(recipe_of(vitg).model, remat=remat)
    found = 40 * estimates.residuals(model, 257, 2) / 2**20
    assert found == pytest.approx(mib, rel=0.2 if remat == "dots_saveable" else 0.01, abs=0.5)


def test_targets():
    assert target("v5p:4x4x4", None) == (chips.chip("v5p"), 64)
    assert target("v5e:8x8", None) == (chips.chip("v5e"), 64)
    assert target(None, "h100x64") == (chips.chip("h100"), 64)
    assert target(None, "a100x4") == (chips.chip("a100"), 4)
    for topology, gpus, words in (
        (None, None, "write one of them"),
        ("v5p:4x4x4", "h100x8", "write one of them"),
        ("v5p-64", None, "CHIP:AxB"),
        (None, "h100", "CHIPxNUMBER"),
    ):
        with pytest.raises(UserError, match=words):
            target(topology, gpus)
    with pytest.raises(UserError, match="write one of a100"):
        chips.chip("p100")


def test_chips_are_known_by_the_names_that_jax_gives():
    kinds = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200",
             "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}  # fmt: skip
    for kind, name in kinds.items():
        assert chips.chip_of(kind).name == name
    assert chips.chip_of("cpu") is None


def test_state_is_twenty_bytes_a_parameter():
    """Student, teacher, two moments and the gradient in float32."""
    out = forecast(recipe_of(vitg), chips.chip("h100"), jax.devices()[:1], compile_it=False)
    memory = out.bytes_of_a_device
    assert memory["state"] + memory["gradients"] == pytest.approx(20 * out.parameters["all"], rel=1e-3)
    assert out.schedule["images_seen"] == 625_000 * 2048


def test_times_by_hand():
    """Each limit alone: FLOPs of all devices at the peak of all; a network of 50 GB/s; a memory of 3.35 TB/s."""
    h100 = chips.chip("h100")
    assert estimates.times(1e18, 0, 0, 0, 8, h100).compute == pytest.approx(1e18 / 8 / 989e12)
    assert estimates.times(0, 0, 0, 50e9, 1, h100).wire == pytest.approx(1.0)
    assert estimates.times(0, 0, 450e9, 0, 1, h100).wire == pytest.approx(1.0)
    assert estimates.times(0, 3.35e12, 0, 0, 1, h100).memory == pytest.approx(1.0)
    # ViT-g: 2 x 1.13e9 FLOPs a token and pass; 2 x 257 + 8 x 37 tokens an image, of the student 60 % and thrice, of the
    # teacher's 2 x 257 all and once; attention and prototypes add about a tenth.
    out = forecast(recipe_of(vitg), h100, jax.devices(), compile_it=False)
    tokens = 3 * 0.6 * (2 * 257 + 8 * 37) + 2 * 257
    assert sum(v for k, v in out.step["tflop_per_image"].items() if k not in ("recomputed", "crops")) == pytest.approx(
        2 * 1.13e9 * tokens / 1e12, rel=0.15
    )


def test_scores_of_attention_are_memory_traffic_unless_a_kernel_keeps_them():
    """ViT-L at 257 tokens as 264 x 384 tiles of float32: by hand 190 ms of a v5e chip at 32 images, with drop path and
    the local crops (40 x 128)."""
    recipe = recipe_of(vitl, data__global_batch=32)
    plain, kernels = (estimates.memory_traffic(recipe, 0, 100, 1, kernels=kernels) for kernels in (False, True))
    scores = lambda crops, tokens, lanes: crops * 24 * 16 * tokens * lanes * 4  # noqa: E731
    # Of 32 global crops in a group 22 are kept, of 128 local ones 89.
    expected = 32 * (scores(2, 264, 384) * (4 + 22 / 32 * 14) + scores(8, 40, 128) * (89 / 128 * 14))
    assert plain - kernels == pytest.approx(expected)
    assert expected / chips.chip("v5e").bandwidth == pytest.approx(0.190, rel=0.1)


def test_what_does_not_fit_names_the_smallest_change():
    """ViT-g on eight chips of 16 GiB: replicated it cannot; the flags that are named make a plan that fits."""
    recipe = recipe_of(vitg, data__global_batch=128, parallel__fsdp=1)
    v5e = chips.chip("v5e")
    out = forecast(recipe, v5e, jax.devices(), compile_it=False)
    assert not out.fits
    change = out.smallest_change
    flags = dict(re.findall(r"--config\.([\w.]+)=(\w+)", change))
    assert flags.keys() <= {"parallel.fsdp", "model.remat", "parallel.accumulation", "data.global_batch"} and flags
    found = {k.replace(".", "__"): int(v) if v.isdigit() else v for k, v in flags.items()}
    better = forecast(recipe_of(vitg, **{"data__global_batch": 128, **found}), v5e, jax.devices(), compile_it=False)
    assert better.fits and better.smallest_change == ""
    # Nothing helps one such chip.
    alone = forecast(recipe, v5e, jax.devices()[:1], compile_it=False)
    assert "take more devices" in alone.smallest_change


def test_more_micro_batches_keep_fewer_activations():
    recipe = recipe_of(vitl, data__global_batch=512, model__drop_path=0.0)
    whole = estimates.activations(recipe, 8, 8)
    parts = estimates.activations(
        recipe_of(vitl, data__global_batch=512, parallel__accumulation=4, model__drop_path=0.0), 8, 8
    )
    assert parts["kept by remat"] * 4 == whole["kept by remat"] and parts["block inputs"] * 4 == whole["block inputs"]
    assert parts["teacher logits"] == whole["teacher logits"]


@pytest.mark.parametrize(("config", "images", "measured"), [(vitl, 64, 209), (vitl, 128, 218), (vitg, 32, 69.2)])
def test_steps_that_were_measured_are_expected(config, images, measured):
    """docs/clusters.md: images/s on one H200."""
    recipe = recipe_of(config, data__global_batch=images, parallel__fsdp=1)
    plan = forecast(recipe, chips.chip("h200"), jax.devices()[:1], compile_it=False)
    assert plan.step["expected_images_per_s_per_device"] == pytest.approx(measured, rel=0.05)


def test_weak_scaling():
    rows = changes.weak_scaling(recipe_of(vitg, parallel__fsdp=8), chips.chip("h100"), 32, kernels=True)
    assert [row["devices"] for row in rows] == [2**i for i in range(3, 13)]
    # One node: nothing crosses the network; weights are gathered inside nodes whatever their number.
    assert rows[0]["wire_bytes_across"] == 0 < rows[1]["wire_bytes_across"]
    assert rows[-1]["wire_bytes_inside"] == pytest.approx(rows[1]["wire_bytes_inside"], rel=0.1)
    assert [row["global_batch"] for row in rows if row["note"]] == [32_768, 65_536, 131_072]
    for row in rows:
        assert row["expected_s"] >= max(row["on_device_s"], row["wire_s"])
        fewer = row["wire_overtakes_below_images"]
        assert fewer / 32 == pytest.approx(row["wire_s"] / row["on_device_s"])


def test_the_command(tmp_path):
    line = [sys.executable, "launch/plan.py", "--config=configs/vitl.py", "--gpus=h100x8", "--nocompile",
            f"--json={tmp_path / 'plan.json'}"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "smallest_change" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["devices"].startswith("8 x h100")
    done = subprocess.run([*line[:3], "--gpus=h100"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "CHIPxNUMBER" in done.stderr


@pytest.mark.soak
def test_the_command_for_a_tpu(tmp_path):
    if not (ROOT / ".venv-tpu" / "bin" / "python").exists():
        pytest.skip("no .venv-tpu: `make plan-venv` makes it")
    line = [sys.executable, "launch/plan.py", "--config=configs/demo.py", "--topology=v5e:2x4",
            "--config.data.global_batch=128", "--config.parallel.fsdp=4", f"--json={tmp_path}/plan.json"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = json.loads((tmp_path / "plan.json").read_text())
    assert out["peak_from"] == "compiled program" and out["fits"]
    assert out["program"]["cycles"][-1]["part of the step"] == "all" and out["program"]["cycles"][-1]["ms"] > 0


@pytest.mark.soak
def test_the_command_for_a_gpu(tmp_path):
    """The program is that of a GPU: cuDNN's attention forward and backward, and a peak of its own."""
    if not (ROOT / ".venv-gpu" / "bin" / "python").exists():
        pytest.skip("no .venv-gpu: `make plan-venv-gpu` makes it")
    line = [sys.executable, "launch/plan.py", "--config=configs/vits.py", "--gpus=h100x8",
            "--config.data.global_batch=128", f"--json={tmp_path}/plan.json"]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = json.loads((tmp_path / "plan.json").read_text())
    assert out["peak_from"] == "compiled program" and out["program"]["compiler"] == "gpu"
    assert sum(out["program"]["kernels"].values()) >= 5 * 12 and "autotuned" in out["program"]["note"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--gpus=foo8", "CHIPxNUMBER"),
        ("--gpus=h101x8", "write one of a100"),
        ("--gpus=v5ex8", "not a GPU"),
        ("--gpus=h100x12", "a multiple of 8"),
        ("--topology=v5e", "CHIP:AxB"),
        ("more", "belongs to no flag"),
    ],
)
def test_a_target_that_is_none_is_one_line(flag, words):
    line = [sys.executable, "launch/plan.py", "--config=configs/vitl.py", flag]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
