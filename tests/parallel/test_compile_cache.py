"""The cache of compiled programs is of its user alone, and of bounded size."""

import os

import jax
import pytest

from curia2_jax.parallel import compile_cache


@pytest.fixture
def told(monkeypatch):
    """What JAX was told."""
    found = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: found.append(pair))
    return found


def test_a_new_folder_is_for_its_owner_alone(tmp_path, told):
    compile_cache.use(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert told == [("jax_compilation_cache_dir", str(tmp_path / "a" / "b"))]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.chmod(0o770), "others can write there and could have you run code; write chmod 700 "),
        (lambda path: path.chmod(0o702), "others can write there"),
        (lambda path: path.rmdir() or path.write_text(""), "File exists"),
    ],
)
def test_what_is_not_safe_is_not_used(tmp_path, told, capsys, harm, words):
    path = tmp_path / "cache"
    path.mkdir()
    harm(path)
    compile_cache.use(str(path))
    said = capsys.readouterr().err
    assert told == [] and said.startswith(f"warning: no compile cache, {path}: {words}") and said.count("\n") == 1


def test_the_folder_of_another_user_is_not_used(tmp_path, told, capsys, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    compile_cache.use(str(tmp_path))
    assert told == [] and "belongs to user" in capsys.readouterr().err


def test_the_oldest_go_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    compile_cache.trim(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    compile_cache.trim(tmp_path, 299)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "middle"}
