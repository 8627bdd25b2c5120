"""The console scripts of an installed package: they are the commands of launch/, with the same help and exit codes."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import curia2_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = PROJECT["scripts"]
# The same table for people; what is installed is made from the one in pyproject.toml.
TABLE = dict(re.findall(r"^\| `launch/(\w+)\.py` \| `([\w-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))


def command_of(script: str) -> str:
    """The file of launch/ behind a script, as its entry point says."""
    found = importlib.metadata.EntryPoint(script, SCRIPTS[script], "console_scripts").load()
    return found.args[0]


def test_every_command_of_the_readme_is_installed_under_the_name_that_it_says():
    assert {command_of(script): script for script in SCRIPTS} == TABLE
    commands = {p.stem for p in (ROOT / "launch").glob("*.py") if "command.start(run" in p.read_text()}
    assert commands == {*TABLE, "demo"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_that_of_the_command(script):
    """Text and exit code, both asked for at once, from a folder that is not the repository."""
    command = command_of(script)
    as_script = f"import sys; from launch import scripts; sys.exit(scripts.{SCRIPTS[script].partition(':')[2]}())"
    lines = [[sys.executable, "-c", as_script, "--help"], [sys.executable, ROOT / "launch" / f"{command}.py", "--help"]]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd="/", env=env) for line in lines]
    (found, _), (expected, _) = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [started[1].returncode] * 2
    assert found == expected and "flags:" in found


def test_a_mistake_ends_a_script_as_it_ends_the_command():
    done = subprocess.run(
        [sys.executable, "-c", "from launch import scripts; scripts.plan()", "--nonsense=1"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: Unknown command line flag")


def test_the_version_is_said_once():
    assert curia2_jax.__version__ == importlib.metadata.version("curia2-jax") == PROJECT["version"]
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        curia2_jax.version  # noqa: B018
