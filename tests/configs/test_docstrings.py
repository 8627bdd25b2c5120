"""What a config's docstring promises is what the plan says, by the command that it names."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common", "ablations"))
PLANNED = [name for name in NAMES if not name.startswith("demo")]
# Forecasts of several plan commands in one process, which has as many virtual devices as the largest.
PLAN = """
import importlib, json, re, sys
import jax
from curia2_jax.planning import chips, forecast
from curia2_jax.training.recipe import recipe_from
commands = json.load(sys.stdin)
targets = {name: chips.target(None, re.search(r"--gpus=(\\w+)", line)[1]) for name, line in commands.items()}
jax.config.update("jax_num_cpu_devices", max(number for _, number in targets.values()))
found = {}
for name, (chip, number) in targets.items():
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(dict(re.findall(r"--config\\.(\\S+?)=(\\S+)", commands[name])))
    plan = forecast.forecast(recipe_from(config.to_dict()), chip, jax.devices()[:number], compile_it=False)
    found[name] = {"fits": plan.fits, "peak": plan.peak_bytes, **plan.parameters, **plan.schedule}
json.dump(found, sys.stdout)
"""


def docstring(name: str) -> str:
    return importlib.import_module(f"configs.{name}").__doc__


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1].replace(",", ""))


@pytest.fixture(scope="module")
def plans() -> dict[str, dict]:
    commands = {
        name: re.search(r"^    (python launch/plan\.py (?:.*\\\n)*.*)$", docstring(name), re.M)[1] for name in PLANNED
    }
    for name, line in commands.items():
        assert re.search(rf"--config=configs/{name}\.py(:\w+)? ", line) and "--nocompile" in line
    done = subprocess.run(
        [sys.executable, "-c", PLAN], input=json.dumps(commands), cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PLANNED)
def test_the_cost_is_what_the_plan_says(plans, name):
    text, plan = " ".join(docstring(name).split()), plans[name]
    assert plan["fits"]
    assert number(r"([\d,]+) backbone parameters", text) == plan["backbone"]
    assert number(r"([\d,]+) images", text) == plan["images_seen"]
    assert number(r"([\d,]+) steps", text) == plan["steps"]
    assert number(r"On (\d+) H100", text) == plan["device_hours"] / plan["hours"]
    assert number(r"takes ([\d.]+) hours", text) == pytest.approx(plan["hours"], rel=0.04)
    assert number(r"\(([\d,.]+) device-hours\)", text) == pytest.approx(plan["device_hours"], rel=0.02)
    assert number(r"([\d.]+) GiB a device", text) == pytest.approx(plan["peak"] / 2**30, abs=0.1)


@pytest.mark.parametrize("name", ["demo", "demo_lejepa"])
def test_a_demo_counts_what_it_trains(name):
    from curia2_jax.training.recipe import recipe_from
    from curia2_jax.training.state import abstract_state, count

    text, config = docstring(name), importlib.import_module(f"configs.{name}").get_config()
    recipe = recipe_from(config.to_dict())
    assert number(r"([\d,]+) backbone parameters", text) == count(abstract_state(recipe).params["backbone"])
    assert number(r"([\d,]+) images", text) == config.total_steps * config.data.global_batch
    assert number(r"([\d,]+) steps", text) == config.total_steps


@pytest.mark.parametrize("name", NAMES)
def test_every_docstring_has_the_command_set_apart(name):
    assert re.search(
        rf"^    python launch/main\.py --config=configs/{name}\.py(:\w+)? .*$", docstring(name), re.MULTILINE
    )
