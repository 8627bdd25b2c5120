"""What all commands do alike: help, stray words, closed pipes, mistakes in config files, odd folders, bare locale."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.data import small_studies

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if "command.start(run" in p.read_text())
# The bare locale, without what Python does to make up for it.
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def begin(command, *arguments, cwd="/", python=(), **streams):
    line = [sys.executable, *python, ROOT / "launch" / f"{command}.py", *map(str, arguments)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(line, cwd=cwd, env=os.environ | BARE | {"PYTHONPATH": str(ROOT)}, **streams)


def end(process):
    """Exit code, stdout and stderr."""
    out, err = (text.decode() if text else "" for text in process.communicate(timeout=300))
    return process.returncode, out, err


def test_all_commands_are_here():
    assert len(COMMANDS) == 10 and {"main", "learned"} <= set(COMMANDS)


# Says on stderr what --help must not wait for: seconds each.
SLOW = """
import atexit, runpy, sys
slow = {"jax", "torch", "sklearn", "matplotlib"}
atexit.register(lambda: print(*(f"{name} was imported" for name in slow & sys.modules.keys()), end="", file=sys.stderr))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_no_failure_and_begins_with_our_flags(command):
    short, full = (begin(command, flag, python=("-W", "error", "-c", SLOW)) for flag in ("--help", "--helpfull"))
    for process, has_others in ((short, False), (full, True)):
        code, out, err = end(process)
        assert (code, err) == (0, "")
        headings = [line for line in out.splitlines() if line.endswith(".py:") or line == "absl.app:"]
        assert headings[0].endswith(f"{command}.py:") and ("absl.app:" in headings) == has_others


@pytest.mark.parametrize("command", ["main", "ingest"])  # what ends a command is the same for all
def test_nobody_reads_the_help(command):
    """As `--help | head -1`: no word, and the code that a shell gives to what SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    process = begin(command, "--help", stdout=write)
    os.close(write)
    code, _, err = end(process)
    assert (code, err) == (141, "")


CONFIG = f"--config={ROOT}/configs/demo.py:2"


@pytest.mark.parametrize(
    ("command", "words", "wanted"),
    [
        ("main", [CONFIG, "config.optim.base_lr=3e-4"], "write --config.optim.base_lr=3e-4"),
        ("main", ["--profile", "false"], "found 'false', which belongs to no flag; write --FLAG=VALUE, see --help"),
        ("bench", [CONFIG, "what=loader"], "write --what=loader"),
        ("convert", ["runs/first"], "found 'runs/first', which belongs to no flag"),
        ("demo", ["scans"], "found 'scans'"),
        ("evaluate", ["--model=a", "--data=b", "--output=c", "liver"], "write --task liver"),
        ("ingest", ["scans", "--output=c"], "found 'scans'"),
        ("plan", [CONFIG, "gpus=h100x8"], "write --gpus=h100x8"),
        ("sweep", ["--sweep=a", "--workdir=b", "--corpus=c", "--", "config.seed=1"], "such as --config.seed=1"),
    ],
)
def test_a_word_without_dashes_is_refused(command, words, wanted):
    code, out, err = end(begin(command, *words))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: found ") and wanted in err


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("--config.views.gamma=1", "--config.views: has another name now; write --config.augment"),
        (
            "--config.objective.sigreg_slices=3",
            "--config.objective.sigreg_slices: has another name now; write --config.",
        ),
        ("--config.optim.base_lrr=1", "--config.optim.base_lrr: unknown key; did you mean base_lr?"),
        ("--config.nothing=1", "--config.nothing: unknown key; configs/common.py has every key"),
    ],
)
def test_a_key_that_is_not_there_is_told_with_the_one_that_is(word, wanted):
    code, out, err = end(begin("main", CONFIG, word))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {wanted}")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("def get_config(\n", 1, "SyntaxError: '(' was never closed"),
        ("\nimport nonsense\n", 2, "ModuleNotFoundError: No module named 'nonsense'"),
        ("def get_config():\n    raise RuntimeError('oh')\n", 2, "RuntimeError: oh"),
        ("def get_config():\n    return int('two')\n", 2, "ValueError: invalid literal"),
        ("def get_config():\n    return open('/nowhere')\n", 2, "FileNotFoundError"),
        ("def get_config():\n    raise SystemExit(1)\n", 2, "SystemExit: 1"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),
        ("def get_config():\n    return {}\n", 0, "returns no ConfigDict"),
        ("def get_config():\n    pass\n", 0, "returns no ConfigDict"),
        ("", 0, "no function get_config()"),
        ("\0", 0, "null bytes"),
    ],
)
def test_a_config_file_with_a_mistake_is_one_line(tmp_path, text, line, what):
    file = tmp_path / "müde arbeit.py"
    file.write_text(text)
    code, out, err = end(begin("main", f"--config={file}"))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: --config") and what in err
    assert not line or f"{file}:{line}: " in err


def test_a_sweep_with_a_mistake_is_one_line(tmp_path):
    file = tmp_path / "sweep.py"
    file.write_text("\n1 / 0\n")
    code, out, err = end(begin("sweep", f"--sweep={file}:a", "--workdir=b", "--corpus=c"))
    assert (code, out) == (2, "")
    assert err == f"error: --sweep={file}:2: ZeroDivisionError: division by zero; mend the file\n"


def test_a_folder_with_blanks_and_umlauts_in_the_bare_locale(tmp_path):
    """Studies to corpus, and the corpus read again, with paths relative to a folder that is not the repository."""
    studies = tmp_path / "alte Studien" / "Müller, Jörg"
    studies.mkdir(parents=True)
    small_studies.write_nifti(studies / "größe 1.nii.gz", small_studies.body((12, 40, 48)))
    (studies / "zerstört.nii.gz").write_bytes(b"no scan")
    made = end(begin("ingest", "--input=alte Studien", "--output=Körper 1", "--workers=1", cwd=tmp_path))
    assert made[0] == 0, made
    assert "zerstört.nii.gz" in (tmp_path / "Körper 1/local/quarantine.csv").read_text(encoding="utf-8")
    code, out, err = end(begin("ingest", "--verify=Körper 1", "--workers=1", cwd=tmp_path))
    assert code == 0 and "Körper 1: every record is as it was written" in out, err
