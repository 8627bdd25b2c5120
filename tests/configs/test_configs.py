"""The shipped configs: counts, differences, and that they are data."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from configs import ablations, common, small
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state, count
from curia2_jax.training.workdir import flat

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common", "ablations"))
# Backbone parameters at the config's own grid: 16 x 16 in stage 1, 32 x 32 at 512 pixels.
COUNTS = {
    "vits": 21_507_840,
    "vitb": 85_483_008,
    "vitl": 303_315_200,
    "vitg": 1_134_261_248,
    "vitb_hires": 86_072_832,
    "vitl_hires": 304_101_632,
    "vitg_hires": 1_135_440_896,
    "curia_vitb": 86_072_832,
    "continue": 85_470_720,
    "lejepa_vitb": 85_483_008,
    "small": 21_507_840,
}


def config(name: str, arg: str | None = None):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_builds_its_abstract_state(name):
    recipe = recipe_from(config(name).to_dict())
    state = abstract_state(recipe)
    assert count(state.teacher) == count(state.params) == count(state.opt_state.mu)
    if not name.startswith("demo"):
        assert count(state.params["backbone"]) == COUNTS[name]


def test_importing_every_config_starts_no_backend():
    code = (
        "import sys, importlib\n"
        f"for name in {NAMES!r}: importlib.import_module('configs.' + name).get_config()\n"
        "assert 'jax' not in sys.modules, 'a config imported jax'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def differences(name: str, base: str) -> dict:
    a, b = (flat(config(n).to_dict()) for n in (base, name))
    assert a.keys() == b.keys()
    return {key: [a[key], b[key]] for key in sorted(a) if a[key] != b[key]}


def test_curia_differs_from_curia_2_in_seven_keys():
    assert set(differences("curia_vitb", "vitb")) == {
        "crops.placement", "masks.placement", "objective.koleo.weight", "objective.sigreg.weight",
        "crops.global_size", "crops.local_size", "optim.base_lr",
    }  # fmt: skip


def test_sizes_and_stages_differ_as_the_golden_list_says():
    golden = json.loads((ROOT / "tests" / "configs" / "differences.json").read_text())
    assert {name: differences(name, golden[name]["from"]) for name in golden} == {
        name: golden[name]["changes"] for name in golden
    }
    assert set(golden) | {"vitb", "curia_vitb", "demo", "small"} == set(NAMES)


def test_the_argument_is_the_side_of_the_global_crops():
    assert config("vitg", "512").crops.global_size == 512


@pytest.mark.parametrize("batch", [32, 64, 128, 512])
def test_a_batch_changes_what_its_scaling_says_and_nothing_else(batch):
    """As many images, forgotten as fast; as many class tokens a prototype; SigReg's 512 / batch undone."""
    base, other = config("small"), config("small", str(batch))
    ratio = batch / 256
    changed = {key for key, value in flat(base.to_dict()).items() if flat(other.to_dict())[key] != value}
    assert changed == set(small.scaling(base, batch))
    assert other.total_steps * batch == base.total_steps * 256 == small.IMAGES
    assert other.schedule.teacher_momentum ** (1 / batch) == pytest.approx(base.schedule.teacher_momentum ** (1 / 256))
    assert other.heads.dino_prototypes / batch == base.heads.dino_prototypes / 256
    assert other.objective.sigreg.weight * 512 / batch == pytest.approx(base.objective.sigreg.weight * 512 / 256)
    peaks = [recipe_from(c.to_dict()).optim.peak_lr(c.data.global_batch) for c in (base, other)]
    assert peaks[1] / peaks[0] == pytest.approx(ratio**0.5)
    for key in ("warmup_steps", "freeze_last_layer_steps", "teacher_temp_warmup_steps"):
        assert other.schedule[key] / other.total_steps == pytest.approx(base.schedule[key] / base.total_steps, rel=1e-3)


@pytest.mark.parametrize("arg", ["16", "40", "1024"])
def test_a_batch_that_small_has_not_is_refused(arg):
    with pytest.raises(ValueError, match=f"small.py:{arg}: write a multiple of 16 from 32 to 512"):
        config("small", arg)


@pytest.mark.parametrize("size", ["vits", "vitb", "vitl", "vitg"])
def test_continue_takes_the_size_by_argument(size):
    """That model but for what DINOv2's released weights have, and a first block at about a quarter of the rate."""
    c, stage_1 = config("continue", size), config(size)
    recipe_from(c.to_dict())
    assert (c.model.width, c.model.depth, c.model.heads) == (
        stage_1.model.width,
        stage_1.model.depth,
        stage_1.model.heads,
    )
    assert c.model.ffn == ("swiglu" if size == "vitg" else "mlp")
    assert 0.2 < c.optim.layerwise_decay**c.model.depth < 0.35
    with pytest.raises(ValueError, match="write one of vits, vitb, vitl, vitg"):
        config("continue", "vith")


def test_every_override_of_the_ablations_is_a_key():
    for runs in ablations.SWEEPS.values():
        for stages in runs.values():
            for file, overrides in stages:
                stem, _, arg = file.partition(":")
                c = config(pathlib.Path(stem).stem, arg or None)
                for key, value in overrides.items():
                    c.update_from_flattened_dict({key: value})
                recipe_from(c.to_dict())


def test_the_ladder_ends_where_curia_2_begins():
    """All rungs together turn curia_vitb into vitb, but for the chain's second stage."""
    stages = list(ablations.SWEEPS["ladder"].values())[-1]
    c = config("curia_vitb")
    c.update_from_flattened_dict(stages[0][1])
    assert flat(c.to_dict()) == flat(config("vitb").to_dict())
    assert [len(s) for s in ablations.SWEEPS["ladder"].values()] == [1, 1, 1, 1, 1, 2]
    assert set(common.SIZES) == {"S", "B", "L", "g"}
