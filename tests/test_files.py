"""What is under a name is whole: through exceptions, kills and second tries."""

import os
import signal
import subprocess
import sys

import pytest

from curia2_jax import files


def test_a_text_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one", "zwölf µm"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_exception_leaves_the_old_one_and_nothing_else(tmp_path, what):
    path = tmp_path / "a"
    if what == "file":
        files.write_text(path, "old")
        with pytest.raises(ZeroDivisionError), files.whole_file(path) as partial:
            partial.write_text("ne")
            raise ZeroDivisionError
        assert path.read_text() == "old"
    else:
        (path / "inside").mkdir(parents=True)
        with pytest.raises(ZeroDivisionError), files.whole_folder(path) as partial:
            (partial / "new").mkdir()
            raise ZeroDivisionError
        assert os.listdir(path) == ["inside"]
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_replaces_a_folder(tmp_path):
    (tmp_path / "a" / "old").mkdir(parents=True)
    with files.whole_folder(tmp_path / "a") as partial:
        (partial / "new").write_text("x")
        assert os.listdir(tmp_path / "a") == ["old"]
    assert os.listdir(tmp_path / "a") == ["new"] and os.listdir(tmp_path) == ["a"]


def test_a_kill_leaves_the_old_one_and_a_name_that_says_so(tmp_path):
    files.write_text(tmp_path / "a", "old")
    program = (
        "import os, pathlib, signal, sys\nfrom curia2_jax import files\n"
        "with files.whole_file(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('ne')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = [name for name in os.listdir(tmp_path) if name != "a"]
    assert left.startswith("a.") and left.endswith(files.SUFFIX)
    assert (tmp_path / "a").read_text() == "old"
