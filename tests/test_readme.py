"""Every console and python block of the README and of docs/, as written, on a few synthetic studies; their tables and
links."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from curia2_jax.data.readers import phantom

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
# In the order of reading: what a page shows may need what the one before it made.
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# The rows of two tables, by estimate, in a process that has as many virtual devices as the largest.
PLANS = """
import importlib, json, re, sys
import jax
from curia2_jax.planning import changes, chips, forecast
from curia2_jax.training.recipe import recipe_from
jax.config.update("jax_num_cpu_devices", 64)
plans = []
for name, target, batch, *_ in json.load(sys.stdin):
    gpus = re.fullmatch(r"(\\d+) x (\\w+)", target)
    chip, number = chips.target(None, f"{gpus[2].lower()}x{gpus[1]}") if gpus else chips.target(target, None)
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.global_batch, config.parallel.fsdp = int(batch.replace(",", "")), 8
    plan = forecast.forecast(recipe_from(config.to_dict()), chip, jax.devices()[:number], compile_it=False)
    wire = sum(plan.step["fewest_wire_bytes_of_a_device"].values())
    plans.append({"peak": plan.peak_bytes / 2**30, "fewest": wire / 2**30})
recipe, v5p = recipe_from(importlib.import_module("configs.vitg").get_config().to_dict()), chips.chip("v5p")
scaling = changes.weak_scaling(recipe, v5p, 32, forecast.kernels_on(recipe, v5p))
json.dump({"plans": plans, "scaling": scaling}, sys.stdout)
"""


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> pathlib.Path:
    """The repository seen from a folder of its own, with studies in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("launch", "configs", "curia2_jax"):
        (folder / name).symlink_to(ROOT / name)
    phantom.write_studies(folder / "studies", 8, seed=5, size=64)
    return folder


def run(line: list[str], clone: pathlib.Path) -> str:
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        line, cwd=clone, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def test_console_and_python_blocks_run_as_written(clone):
    for page in PAGES:
        lines = [line for block in blocks(page, "console") for line in block.splitlines()]
        assert all(line.startswith("$ python launch/") for line in lines), page
        assert lines or page != README
        for line in lines:
            run(shlex.split(line.removeprefix("$ ")), clone)
        for block in blocks(page, "python"):
            out = run([sys.executable, "-c", block + "\nprint(tuple(tokens.shape))"], clone)
            assert out.splitlines()[-1] == "(1, 37, 128)"  # class token and 6 x 6 patches of the demo model
    assert (clone / "reports" / "first" / "report.html").stat().st_size > 10_000
    assert {path.name for path in (clone / "corpora" / "ours" / "preview").iterdir()} >= {"placement.png"}


def test_the_table_of_configs_is_true():
    from curia2_jax.training.recipe import recipe_from
    from curia2_jax.training.state import abstract_state, count

    rows = re.findall(r"^\| `configs/(\w+)\.py` \|(.*)\|$", (ROOT / "docs" / "clusters.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {p.stem for p in (ROOT / "configs").glob("*.py")} - {
        "__init__",
        "common",
        "ablations",
    }
    for name, row in rows:
        parameters, crops, batch, rate = (cell.strip() for cell in row.split("|"))
        config = importlib.import_module(f"configs.{name}").get_config()
        assert crops == f"{config.crops.global_size} / {config.crops.local_size}"
        assert batch == f"{config.data.global_batch:,}"
        assert float(rate) == pytest.approx(config.optim.base_lr)
        if parameters != "small":
            state = abstract_state(recipe_from(config.to_dict()))
            assert parameters == f"{count(state.params['backbone']):,}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_and_every_command_leads_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"((?:launch|configs)/[\w/]+\.(?:py|sh|sbatch|yaml))", text):
        assert (ROOT / name).exists(), name


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)]+\.md)\)", README.read_text()))
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES} - {"README.md"}


def test_the_glossary_names_files_that_are_there_and_planes_as_they_are_cut():
    import numpy as np

    from curia2_jax.data.corpus.planes import in_plane

    text = (ROOT / "docs" / "glossary.md").read_text()
    files = re.findall(r"`([\w./]+\.py)`", text)
    assert len(files) > 40 and all((ROOT / "curia2_jax" / name).exists() for name in files)
    voxels, at = np.random.default_rng(0).random((3, 4, 5)), {"s": 1, "p": 2, "l": 3}
    planes = re.findall(r"^\| (\w+) \| `(voxels\[.*?\])` \|", text, re.MULTILINE)
    assert [name for name, _ in planes] == ["axial", "coronal", "sagittal"]
    for (name, expression), number in zip(planes, at.values(), strict=True):
        shown = eval(expression, {"voxels": voxels} | at)
        np.testing.assert_array_equal(in_plane(voxels, name)[number], shown)


def test_the_errands_name_files_that_are_there():
    """But for those that were made for the trial."""
    text = (ROOT / "docs" / "extending.md").read_text()
    files = set(re.findall(r"`((?:[a-z_]+/)+\w+\.py)`", text)) - {
        "losses/x.py",
        "losses/variance.py",
        "data/readers/npy.py",
    }
    assert len(files) > 15
    assert not {name for name in files if not any((root / name).exists() for root in (ROOT, ROOT / "curia2_jax"))}


def test_the_tables_of_plans_are_what_the_plan_says():
    """What arithmetic gives: estimates, fewest bytes on the wire, weak scaling. Compiling takes minutes a row."""
    text = (ROOT / "docs" / "clusters.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)\.py`, (\S+(?: x \w+)?) \| ([\d,]+) \| .*? \| ([\d.]+) GiB \| \d+ \| .*? of ([\d.]+) GiB \|$",
        text, re.MULTILINE,
    )  # fmt: skip
    scaling = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d.]+) GiB \| ([\d.]+) \| (.*)\|$", text, re.MULTILINE)
    assert len(rows) == 6 and len(scaling) == 4
    done = subprocess.run(
        [sys.executable, "-c", PLANS], input=json.dumps(rows), cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    for (_, _, _, peak, fewest), plan in zip(rows, found["plans"], strict=True):
        assert float(peak) == pytest.approx(plan["peak"], abs=0.06)
        assert float(fewest) == pytest.approx(plan["fewest"], abs=0.06)
    by_devices = {row["devices"]: row for row in found["scaling"]}
    for devices, images, wire, ratio, note in scaling:
        row = by_devices[int(devices.replace(",", ""))]
        assert int(images.replace(",", "")) == row["global_batch"] and note.strip() == row["note"]
        assert float(wire) == pytest.approx(row["wire_bytes_inside"] / 2**30, abs=0.06)
        assert float(ratio) == pytest.approx(row["wire_s"] / row["on_device_s"], abs=6e-4)
