"""Every console and python block of the README and of docs/, as written, on a few synthetic studies; their tables and
links."""

import importlib
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
            assert out.splitlines()[-1] == "(1, 65, 128)"  # class token and 8 x 8 patches of the demo model
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

    from curia2_jax.data.ingest.slicing import in_plane

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
