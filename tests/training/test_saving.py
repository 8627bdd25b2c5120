"""A disk that takes no checkpoint: the run is told why, tries again, and in the end gives up."""

import gc
import json
import os
import pathlib
import shutil
import subprocess
import threading
import time

import jax
import numpy as np
import pytest

from curia2_jax.errors import UserError
from curia2_jax.parallel import processes
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.telemetry import resources
from curia2_jax.training import checkpoints, lock, prepare, saving
from curia2_jax.training import state as states
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.loop import DONE, STOPPED, train
from curia2_jax.training.recipe import CheckpointConfig, recipe_from
from curia2_jax.training.saving import Saver, quiet
from tests.data.small_corpus import write_small_corpus
from tests.training.tiny import StopsWhen, tiny_config

EVERY = 10


@pytest.fixture(scope="module")
def state():
    abstract = states.abstract_state(recipe_from(tiny_config()))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jax.numpy.asarray(rng.normal(size=a.shape), a.dtype), abstract)


@pytest.fixture
def saver(tmp_path):
    with quiet(), Checkpoints(tmp_path / "run", CheckpointConfig(EVERY, 2, 100)) as saved:
        yield Saver(tmp_path / "run", saved, None, EVERY)


def save(saver: Saver, state, step: int) -> None:
    saver.save(step, state.replace(step=np.int32(step)), {"corpus": "d"})
    saver.finish()


def test_no_room_is_one_line_nothing_is_written_and_later_it_is(saver, state, tmp_path, monkeypatch):
    needed = sum(np.prod(leaf.shape, dtype=int) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    save(saver, state, 10)
    assert (saver.newest, saver.trouble, saver.poll()) == (10, "", "")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    for step, too_long in ((20, False), (30, False), (40, True)):
        save(saver, state, step)
        assert saver.newest == 10 and saver.too_long(step) == too_long
    said = saver.poll()
    assert said.startswith("not saved since step 10: ") and "MiB are free; make room" in said and "\n" not in said
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    save(saver, state, 50)
    assert (saver.newest, saver.trouble) == (50, "") and not saver.too_long(10**6)
    assert checkpoints.steps(tmp_path / "run") == [10, 50]


@pytest.mark.parametrize("when", ["at once", "in the background", "no folder"])
def test_a_write_that_fails_leaves_nothing_behind(saver, state, tmp_path, monkeypatch, when, capfd):
    save(saver, state, 10)
    real = pathlib.Path.write_text, saver._checkpoints.save

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if when == "at once":
        monkeypatch.setattr(saver._checkpoints, "save", fails)
    else:
        name = {"in the background": "write_text", "no folder": "mkdir"}[when]
        monkeypatch.setattr(f"etils.epath.gpath.PosixGPath.{name}", fails)
    save(saver, state, 20)
    assert saver.newest == 10 and "No space left on device" in saver.trouble
    monkeypatch.undo()
    assert real[0] is pathlib.Path.write_text
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["10"]
    save(saver, state, 30)
    assert (saver.newest, saver.trouble) == (30, "")
    assert capfd.readouterr().err == ""


def test_what_writes_on_after_a_failure_is_removed_when_it_has_ended(saver, state, tmp_path, monkeypatch):
    """TensorStore makes the folders anew that were removed below it."""
    save(saver, state, 10)
    late = tmp_path / "run" / "checkpoints" / "20.orbax-checkpoint-tmp" / "params"

    def goes_on() -> None:
        for number in range(6):
            time.sleep(0.02)
            late.mkdir(parents=True, exist_ok=True)
            (late / str(number)).write_text("")

    def fails(*_: object, **__: object) -> None:
        threading.Thread(target=goes_on).start()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver._checkpoints, "save", fails)
    save(saver, state, 20)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["10"]


@pytest.mark.parametrize("mine", [False, True])
def test_several_processes_leave_a_save_out_together(saver, state, monkeypatch, mine):
    """One sees that its disk takes none, this one or another. None begins, for Orbax meets all of them on the way; nor
    is anything opened anew, which they would have to do together as well."""
    free = 0 if mine else 1 << 40
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage._replace(free=free))
    monkeypatch.setattr(saving.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda found: np.array([found, True]))
    monkeypatch.setattr(saver, "_checkpoints", None)
    save(saver, state, 20)
    words = "MiB are free" if mine else "process 1 cannot write a checkpoint"
    assert words in saver.poll() and saver.newest == 0
    assert not saver.too_long(29) and saver.too_long(30)


def test_one_of_several_processes_that_cannot_write_ends_with_a_line(saver, state, monkeypatch):
    """It does not leave the others to a traceback: they see that it is gone, and all are started again."""
    said = []

    def ends(code: int, line: str, *, fault: bool) -> None:
        said.append((code, line, fault))
        raise SystemExit(code)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.jax, "process_count", lambda: 2)
    monkeypatch.setattr(saving, "end_now", ends)
    with pytest.raises(SystemExit):
        saver._attempt(fails)
    ((code, line, fault),) = said
    assert (code, fault) == (42, True) and "\n" not in line
    assert line.startswith("process 0 stops: its part of a checkpoint cannot be written ([Errno 28] No space left")


def test_a_save_leaves_no_objects_behind(saver, state):
    def lists() -> int:
        gc.collect()
        return sum(type(x) is list for x in gc.get_objects())

    save(saver, state, 10)
    save(saver, state, 20)
    before = lists()
    for step in (30, 40, 50, 60):
        save(saver, state, step)
    assert lists() - before < 4 * 24  # they were 96 a save


def test_what_orbax_asks_of_every_folder_is_freed():
    """TensorStore keeps 250 bytes of each answer; ours is the same."""
    spec = checkpoints.tensorstore_utils.ts.KvStore.Spec({"driver": "file", "path": "/a b/ü%/1/"})
    assert spec.to_json() == checkpoints._as_json(spec) == {"driver": "file", "path": "/a b/ü%/1/"}
    before = resources.usage()["rss_bytes"]
    for _ in range(20_000):
        spec.to_json()
    assert resources.usage()["rss_bytes"] < before + (2 << 20)  # it was 5 MB


def test_a_removed_workdir_is_one_line(saver, state, tmp_path):
    save(saver, state, 10)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="was removed while the run was writing there"):
        save(saver, state, 20)


@pytest.mark.soak
def test_a_run_on_a_full_disk_goes_on_and_says_so(small_disk, tmp_path, capfd, monkeypatch):
    """Filled after the first save; the fourth interval without one ends it. With room again it is as if nothing was."""
    monkeypatch.setattr(prepare, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
    write_small_corpus(tmp_path / "corpus")
    config = tiny_config(
        data__corpus=str(tmp_path / "corpus"), total_steps=9, checkpoint__every_steps=2, model__init="fan_in"
    )
    fill = small_disk / "fill"

    class Filling:
        """Fills the disk when it is first asked after the first checkpoint."""

        def made(self) -> bool:
            if not fill.exists() and checkpoints.steps(small_disk / "run"):
                with open(fill, "wb", buffering=0) as file:
                    while shutil.disk_usage(small_disk).free:
                        file.write(bytes(4096))
            return False

        def answered(self):
            return quiet()

    assert train(config, small_disk / "run", Filling()) == STOPPED
    said = capfd.readouterr()
    assert said.err.startswith("warning: stopped at step 8, not saved since step 2: ") and said.err.count("\n") == 1
    told = [line for line in said.out.splitlines() if "not saved since step 2" in line]
    assert len(told) >= 3 and all("rows wait (No space left on device)" in line for line in told[1:])
    assert checkpoints.steps(small_disk / "run") == [2]
    fill.unlink()
    assert train(config, small_disk / "run") == DONE
    assert train(config, tmp_path / "alone") == DONE
    assert (small_disk / "run" / "state.sha256").read_text() == (tmp_path / "alone" / "state.sha256").read_text()
    rows = (small_disk / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 10))


def make_read_only(disk: pathlib.Path) -> None:
    """For whoever opens a file there from now on; the disk itself is busy as long as a log is open."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before a save", "during a save"])
def test_a_run_on_a_disk_that_becomes_read_only_goes_on_and_says_so(small_disk, tmp_path, capfd, monkeypatch, when):
    """From the second save on; the fourth interval without one ends it."""
    monkeypatch.setattr(prepare, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
    write_small_corpus(tmp_path / "corpus")
    config = tiny_config(
        data__corpus=str(tmp_path / "corpus"), total_steps=9, checkpoint__every_steps=2, model__init="fan_in"
    )
    run, real = small_disk / "run", Checkpoints.save

    def save(self, state, meta):
        second = int(state.step) == 4
        watching = threading.Thread(target=as_soon_as_it_writes)
        if second and when == "during a save":
            watching.start()
        elif second:
            make_read_only(small_disk)
        real(self, state, meta)
        if second and when == "during a save":
            watching.join()

    def as_soon_as_it_writes():
        while not any((run / "checkpoints").glob("4.orbax-checkpoint-tmp/*")):
            time.sleep(0.001)
        make_read_only(small_disk)

    monkeypatch.setattr(Checkpoints, "save", save)
    assert train(config, run, StopsWhen([], 1)) == STOPPED
    said = capfd.readouterr()
    assert said.err.startswith("warning: stopped at step 8, not saved since step 2: ") and said.err.count("\n") == 1
    assert said.out.count("not saved since step 2: ") >= 3
    subprocess.run(["umount", small_disk], check=True)
    (run / lock.NAME).unlink()  # a run would be dead by now, and this process lives
    monkeypatch.setattr(Checkpoints, "save", real)
    assert train(config, run) == DONE
    assert not list((run / "checkpoints").glob("*tmp*"))
    assert train(config, tmp_path / "alone") == DONE
    assert (run / "state.sha256").read_text() == (tmp_path / "alone" / "state.sha256").read_text()


@pytest.mark.soak
def test_two_thousand_saves_leave_nothing_behind(saver, state):
    """Files, threads and memory after the last tenth are those after the first."""
    seen = []
    for number in range(1, 2001):
        save(saver, state, EVERY * number)
        if number % 200 == 0:
            gc.collect()
            seen.append(resources.usage())
    first, last = seen[0], seen[-1]
    assert saver.newest == EVERY * 2000 and not saver.trouble
    assert last["open_files"] <= first["open_files"] + 2 and last["threads"] <= first["threads"] + 2
    assert last["shm_bytes"] <= first["shm_bytes"] + (1 << 20)
    assert last["rss_bytes"] <= first["rss_bytes"] + (64 << 20), [int(s["rss_bytes"]) >> 20 for s in seen]
