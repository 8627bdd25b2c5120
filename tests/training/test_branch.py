"""A run that begins with a checkpoint of another goes on as that one did; what does not fit is one line."""

import json
import pathlib
import shutil

import pytest

from curia2_jax.errors import UserError
from curia2_jax.training import branch, checkpoints, journal, workdir
from curia2_jax.training.loop import DONE, STOPPED, train
from tests.training.tiny import StopsWhen, tiny_config


def config(corpus, **changes):
    more = {"checkpoint__latest": 9, "model__init": "fan_in"} | changes
    return tiny_config(data__corpus=str(corpus), **more)


@pytest.fixture
def stem(tmp_path, corpus, quick) -> pathlib.Path:
    """A run of 6 steps with all its checkpoints."""
    assert train(config(corpus), tmp_path / "stem") == DONE
    return tmp_path / "stem"


def test_a_branch_goes_on_as_the_run_did_and_says_where_it_comes_from(stem, tmp_path, corpus, taken, capsys):
    new, source = tmp_path / "new", f"{stem}@2"
    assert train(config(corpus), new, StopsWhen(taken, 3), source=source) == STOPPED
    assert train(config(corpus), new, source=source) == DONE  # as a scheduler calls it again
    assert (new / "state.sha256").read_text() == (stem / "state.sha256").read_text()
    said = json.loads((new / "branch.json").read_text())
    assert (said["run"], said["step"], said["changed"]) == (str(stem), 2, {})
    assert said["teacher_digest"] == checkpoints.restore_teacher(stem, 2)[1]["teacher_digest"]
    assert capsys.readouterr().out.count(f"branched from {stem}@2; changed in its config: nothing\n") == 1

    slower = tmp_path / "slower"
    assert train(config(corpus, optim__clip_norm=0.1), slower, source=source) == DONE
    assert json.loads((slower / "branch.json").read_text())["changed"] == {"optim.clip_norm": [3.0, 0.1]}
    assert checkpoints.read_meta(slower, 2) == checkpoints.read_meta(stem, 2)
    assert (slower / "state.sha256").read_text() != (stem / "state.sha256").read_text()

    for source, changes, message in (
        (f"{stem}", {}, "no step; write RUN@STEP"),
        (f"{stem}@3", {}, "no step 3; write one of 2, 4, 6"),
        (f"{tmp_path}/nowhere@3", {}, "no folder"),
        (f"{stem}@6", {}, "config.total_steps is 6, so nothing is left to do"),
        (f"{stem}@4", {"model__width": 16}, r"params/.* is \(.*32.*\) there, \(.*16.*\) in this config"),
        (
            f"{stem}@4",
            {"objective__dino__weight": 0.0, "objective__ibot__weight": 0.0},
            "dino_head/.* there, not",
        ),
        (f"{stem}@4", {"heads__shared": True}, r"params/ibot_head/.* is \(.*\) there, not in this config"),
    ):
        other = tmp_path / "other"
        workdir.claim(other, config(corpus, **changes))
        with pytest.raises(UserError, match=message) as error:
            branch.begin(other, source, config(corpus, **changes))
        assert "\n" not in str(error.value) and not checkpoints.steps(other) and not (other / branch.NAME).exists()
        shutil.rmtree(other)
    for folder, source, message in (
        (stem, f"{new}@2", "a run that did not begin with"),
        (new, f"{stem}@4", f"a run that began with {stem}@2; write a new folder"),
    ):
        with pytest.raises(UserError, match=message):
            branch.begin(folder, source, config(corpus))

    for text in ("{", "[]", '{"run": "x", "step": "y", "changed": {}}'):
        (tmp_path / branch.NAME).write_text(text)
        with pytest.raises(UserError, match=r"branch\.json: damaged \(\w+\); write a new --workdir"):
            branch.begin(tmp_path, "", config(corpus))

    # A branch that was killed before the checkpoint was there is completed, whether or not it is named again; bad steps
    # and batches that are passed over go with it, as far as they belong to it.
    rows = [{"step": 1, "done": "skip"}, {"step": 4, "done": "rewind", "from": 2, "batches": 2}]
    later = [{"step": 3, "done": "skip"}, {"step": 7, "done": "rewind", "from": 4, "batches": 3}]
    (stem / journal.NAME).write_text("".join(json.dumps(row) + "\n" for row in rows + later))
    shutil.rmtree(new / "checkpoints" / "2")
    for step in checkpoints.steps(new):
        shutil.rmtree(new / "checkpoints" / str(step))
    branch.begin(new, "", config(corpus))
    assert checkpoints.steps(new) == [2] and journal.read(new / journal.NAME) == rows
