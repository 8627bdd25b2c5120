"""Damage to a checkpoint is seen, whatever the file; the run goes on from the newest that is whole."""

import itertools
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import ParallelConfig, make_mesh
from curia2_jax.training import checkpoints, salvage
from curia2_jax.training import state as states
from curia2_jax.training.checkpoints import Checkpoints, Damaged
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config

RECIPE = recipe_from(tiny_config())
ARRAYS = len(jax.tree.leaves(states.abstract_state(RECIPE))) - 1  # the step is no array of it


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    """A run with checkpoints 1, 2 and 3 of noise."""
    folder = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    abstract = states.abstract_state(RECIPE)
    with Checkpoints(folder, RECIPE.checkpoint.__class__(1, latest=3, keep_every_steps=100)) as writer:
        for step in (1, 2, 3):
            state = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape) * 10, a.dtype), abstract)
            writer.save(state.replace(step=np.int32(step)), {"config": "c", "corpus": "d"})
    return folder


@pytest.fixture
def run(written, tmp_path) -> pathlib.Path:
    return shutil.copytree(written, tmp_path / "run")


def restored(run: pathlib.Path, step: int) -> str:
    """The hash of what a run would go on from."""
    mesh = make_mesh(ParallelConfig(1, 1), jax.devices()[:1])
    with Checkpoints(run, RECIPE.checkpoint) as reader:
        return states.state_hash(reader.restore(step, abstract_sharded_state(RECIPE, mesh))[0])


def damage(path: pathlib.Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(data)))
    else:
        at = len(data) * {"first bit": 0.02, "middle bit": 0.5, "last bit": 0.97}[how]
        data[int(at)] ^= 1
        path.write_bytes(data)


def damage_values(run: pathlib.Path, item: str, how: str) -> None:
    """Damages the file with most of the values of an item; the small arrays of `centers` are in two."""
    files = [path for path in (run / "checkpoints" / "3" / item).rglob("*") if path.is_file()]
    most = max(path.stat().st_size for path in files)
    for path in files:
        if path.stat().st_size == most:
            damage(path, how)


def test_a_whole_run_is_whole(run, capsys):
    assert salvage.newest_good(run) == 3
    assert list(salvage.verdicts(run)) == [(1, ARRAYS), (2, ARRAYS), (3, ARRAYS)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("item", checkpoints.ITEMS)
@pytest.mark.parametrize("how", ["deleted", "cut", "zeroed", "middle bit"])
def test_the_damaged_step_aside_and_the_newest_good_one_is_taken(run, item, how, capsys):
    damage_values(run, item, how)
    assert salvage.newest_good(run) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"{run}@3: {item}" in line
    assert line.endswith("moved to 3.damaged, the run goes on from step 2\n")
    assert checkpoints.steps(run) == [1, 2] and (run / "checkpoints" / "3.damaged" / item).is_dir()
    assert restored(run, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"corpus": "d"', '"corpus": "e"'),
        lambda text: text.replace('"step": 3', '"step": 2'),
        lambda text: text.replace('"arrays"', '"arrayt"'),
        lambda text: text.replace('"format"', '"formau"'),
        lambda text: text.replace('"sha256"', '"sha25v"'),
        lambda text: "[]",
    ],
)
def test_meta_is_proven_too(run, change, capsys):
    path = run / "checkpoints" / "3" / "meta" / "metadata"
    path.write_text(change(path.read_text()))
    assert salvage.newest_good(run) == 2
    assert f"{run}@3: meta" in capsys.readouterr().err


def test_when_none_is_good_nothing_moves_and_one_line_says_so(run):
    for step in (1, 2, 3):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match="none of 3 checkpoints is good") as error:
        salvage.newest_good(run)
    assert "\n" not in str(error.value) and checkpoints.steps(run) == [1, 2, 3]


def test_the_same_step_can_be_damaged_twice(run, written):
    for name in ("3.damaged", "3.damaged-2"):
        damage_values(run, "params", "cut")
        assert salvage.newest_good(run) == 2 and (run / "checkpoints" / name).is_dir()
        shutil.copytree(written / "checkpoints" / "3", run / "checkpoints" / "3")
    assert salvage.newest_good(run) == 3


@pytest.mark.parametrize("item", ["params", "teacher"])
def test_no_reader_takes_a_flipped_bit(run, item):
    """`init_from` and the export read items; a run restores all, and finds what its check before did not."""
    damage_values(run, item, "middle bit")
    with pytest.raises(Damaged, match=f"{item}/.* is not what was saved"):
        checkpoints.restore_item(run, 3, item)
    with pytest.raises(Damaged, match=f"{item}/.* is not what was saved"):
        restored(run, 3)


def test_a_checkpoint_of_a_later_release_is_not_called_damaged(run):
    path = run / "checkpoints" / "3" / "meta" / "metadata"
    said = json.loads(path.read_text()) | {"format": 3}
    del said["sha256"]
    path.write_text(json.dumps(said | {"sha256": checkpoints._sha256(said)}))
    with pytest.raises(UserError, match=r"of a later release \(format 3\); update") as error:
        salvage.newest_good(run)
    assert not isinstance(error.value, Damaged) and checkpoints.steps(run) == [1, 2, 3]


def test_leftovers_of_killed_saves_go_and_nothing_else(run):
    partial = run / "checkpoints" / "4.orbax-checkpoint-tmp" / "params"
    partial.mkdir(parents=True)
    (run / "checkpoints" / ".2.77.partial" / "params").mkdir(parents=True)  # a copy of a branch
    (run / "config.json.77.partial").write_text("{")
    (run / "notes.txt").write_text("mine")
    for name, age in (("lock", 0), ("lock.asks", 5), ("lock.killed", 3600), ("lock.killed.now", 3600)):
        (run / name).write_text("")
        os.utime(run / name, (1e9 - age, 1e9 - age))
    salvage.clear_leftovers(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "lock", "lock.asks", "notes.txt"]
    assert checkpoints.steps(run) == [1, 2, 3] and not partial.parent.exists()


def every_damage(run: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    files = sorted(path for path in (run / "checkpoints" / "3").rglob("*") if path.is_file())
    kinds = ("deleted", "cut", "zeroed", "first bit", "middle bit", "last bit")
    return [(path.relative_to(run), how) for path, how in itertools.product(files, kinds)]


@pytest.mark.soak
def test_every_file_damaged_in_every_way_is_harmless_or_seen(written, tmp_path, capsys):
    """Whatever happens to a file, the run goes on from 3 as it was saved, or from 2: never from anything else."""
    hashes = {step: restored(written, step) for step in (2, 3)}
    taken = {2: 0, 3: 0}
    for number, (path, how) in enumerate(every_damage(written)):
        run = shutil.copytree(written, tmp_path / str(number))
        damage(run / path, how)
        step = salvage.newest_good(run)
        assert restored(run, step) == hashes[step], (path, how)
        lines = capsys.readouterr().err.count("\n")
        assert lines == (step == 2), (path, how)
        taken[step] += 1
        shutil.rmtree(run)
    print(f"{sum(taken.values())} damages: {taken[3]} harmless, {taken[2]} seen, none taken for good")
    assert taken[2] > 0 and taken[3] > 0


def test_the_command_names_what_is_damaged(run, capsys):
    assert salvage.tell(run) == 0
    damage_values(run, "teacher", "middle bit")
    capsys.readouterr()
    assert salvage.tell(run) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"checkpoint {run}@{step}" for step in (1, 2, 3)]
    assert lines[1].endswith(f"whole, {ARRAYS} arrays compared with what was saved") and "teacher/" in lines[2]
