"""Every console and python block of the README, as written, on a few synthetic studies."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from curia2_jax.data.readers import phantom

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


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
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert lines and all(line.startswith("$ python launch/") for line in lines)
    for line in lines:
        run(shlex.split(line.removeprefix("$ ")), clone)
    assert (clone / "reports" / "first" / "report.html").stat().st_size > 10_000
    for block in blocks("python"):
        out = run([sys.executable, "-c", block + "\nprint(tuple(tokens.shape))"], clone)
        assert out.splitlines()[-1] == "(1, 65, 128)"  # class token and 8 x 8 patches of the demo model


def test_the_table_of_configs_is_true():
    import importlib

    from curia2_jax.training.recipe import recipe_from
    from curia2_jax.training.state import abstract_state, count

    rows = re.findall(r"^\| `configs/(\w+)\.py` \|(.*)\|$", README, re.MULTILINE)
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


def test_every_command_of_the_table_exists():
    for name in re.findall(r"`(launch/[\w/]+\.(?:py|sh|sbatch|yaml))", README):
        assert (ROOT / name).exists(), name
