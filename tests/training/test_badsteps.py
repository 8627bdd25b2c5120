"""Steps that are worth nothing: what stops, what is left out, what is taken instead, and the capsule of one."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax import files
from curia2_jax.ending import NOT_AGAIN
from curia2_jax.errors import UserError
from curia2_jax.telemetry import metrics
from curia2_jax.training import augment, capsule, checkpoints, collapse, journal, prepare, reports
from curia2_jax.training.loop import DONE, STOPPED, train
from curia2_jax.training.spikes import FEWEST, KNOWN, LAG, Norms
from tests.training.tiny import StopsWhen, tiny_config

BAD = 3  # the batch of the stream, from 0, that makes every loss NaN


@pytest.fixture
def stream(corpus, quick, monkeypatch) -> list[bytes]:
    """The first batches of the stream, of which BAD poisons the loss of any step that gets it; one device."""
    recipe = prepare.recipe_from(tiny_config(data__corpus=str(corpus)))
    opened = prepare.batches(recipe.data, recipe.crops, recipe.masks, 8, seed=recipe.seed, stop_step=10)
    with opened:
        slices = [batch["slices"].copy() for batch in opened]
    crops_of = augment.crops_of

    def poisoned(batch, *args):
        bad = (batch["slices"] == jnp.asarray(slices[BAD])).all()
        return tuple(crops + jnp.where(bad, jnp.nan, 0.0) for crops in crops_of(batch, *args))

    monkeypatch.setattr(augment, "crops_of", poisoned)
    return [each.tobytes() for each in slices]


def config(corpus, policy, **changes):
    return tiny_config(
        data__corpus=str(corpus), guard__nonfinite=policy, checkpoint__latest=9, model__init="fan_in", **changes
    )


def steps_and_losses(run):
    return [(row["step"], row["loss"]) for row in metrics.read(run / "metrics.jsonl")[0]]


def arrays(run, step):
    return {item: checkpoints.read_meta(run, step)["arrays"][item] for item in checkpoints.ITEMS}


def test_skip_leaves_everything_but_the_step_and_is_the_same_when_interrupted(tmp_path, corpus, stream, taken, capsys):
    run = tmp_path / "run"
    assert train(config(corpus, "skip", checkpoint__every_steps=1), run) == DONE
    assert [step for step, _ in taken] == [1, 2, 3, 4, 5, 6] and [slices for _, slices in taken] == stream[:6]
    rows = steps_and_losses(run)
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6] and [loss for _, loss in rows].count(None) == 1
    assert rows[BAD][1] is None
    assert arrays(run, BAD) == arrays(run, BAD + 1) != arrays(run, BAD + 2)
    (row,) = journal.read(run / journal.NAME)
    assert (row["step"], row["done"], len(row["batch"])) == (BAD + 1, "skip", 8)
    err = capsys.readouterr().err
    assert err.startswith("warning: step 4: loss nan or a gradient norm is not finite; its update is skipped (1 of at")
    assert err.count("\n") == 1

    again = tmp_path / "again"
    interrupted = config(corpus, "skip", checkpoint__every_steps=2)
    taken.clear()
    assert train(interrupted, again, StopsWhen(taken, 5)) == STOPPED
    assert train(interrupted, again) == DONE
    assert (again / "state.sha256").read_text() == (run / "state.sha256").read_text()
    assert len(journal.read(again / journal.NAME)) == 1


def test_rewind_goes_on_behind_the_batch_and_is_the_same_when_interrupted(tmp_path, corpus, stream, taken, capsys):
    run = tmp_path / "run"
    rewinding = config(corpus, "rewind", checkpoint__every_steps=2)
    assert train(rewinding, run) == DONE
    order = [(step, stream.index(slices)) for step, slices in taken]
    second = order.index((3, BAD + 1))
    assert order[:second] == [(step, step - 1) for step in range(1, second + 1)]
    assert order[second:] == [(3, 4), (4, 5), (5, 6), (6, 7)]
    assert [step for step, loss in steps_and_losses(run) if loss is not None] == [1, 2, 3, 4, 5, 6]
    (row,) = journal.read(run / journal.NAME)
    assert (row["step"], row["from"], row["batches"], row["done"]) == (4, 2, 2, "rewind")
    assert "back to step 2 and on behind its batch (1 of at most 10 in this run)" in capsys.readouterr().err

    again = tmp_path / "again"
    taken.clear()
    assert train(rewinding, again, StopsWhen(taken, second + 3)) == STOPPED
    stopped = checkpoints.steps(again)[-1]
    assert stopped > 2
    taken.clear()
    assert train(rewinding, again) == DONE
    assert [(step, stream.index(slices)) for step, slices in taken] == [
        (step, step + 1) for step in range(stopped + 1, 7)
    ]
    assert (again / "state.sha256").read_text() == (run / "state.sha256").read_text()


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_more_than_the_limit_stops_for_good(tmp_path, corpus, stream, taken, policy, capsys):
    run = tmp_path / "run"
    row = {"step": 1, "done": "skip", "metrics": {}, "batch": []}
    limited = config(corpus, policy, guard__limit=2, checkpoint__every_steps=2)
    assert train(limited, run, StopsWhen(taken, 3)) == STOPPED
    (run / journal.NAME).write_text(2 * (json.dumps(row) + "\n"))
    capsys.readouterr()
    assert train(limited, run) == NOT_AGAIN
    err = capsys.readouterr().err
    assert "it is one more than config.guard.limit allows" in err and err.count("\n") == 1
    assert len(journal.read(run / journal.NAME)) == 2


def test_the_capsule_of_a_bad_step_does_it_again_bit_for_bit(tmp_path, corpus, stream, capsys):
    run = tmp_path / "run"
    assert train(config(corpus, "stop", checkpoint__every_steps=2), run) == NOT_AGAIN
    assert f"--replay={run / 'bad_step'} does it again" in capsys.readouterr().err
    assert checkpoints.steps(run) == [2] and checkpoints.steps(run / "bad_step") == [BAD]
    assert capsule.replay(run / "bad_step") == 0
    said = capsys.readouterr().out.splitlines()[-1]
    report = json.loads((run / "bad_step" / "report.json").read_text())
    total = len(report["metrics"])
    assert total > 20 and said == f"step 4: loss nan; {total} of {total} scalars are those of the run, bit for bit"
    assert isinstance(report["metrics"]["lr"], float) and report == json.loads((run / "nonfinite.json").read_text())

    report["metrics"]["lr"] = float(np.nextafter(np.float32(report["metrics"]["lr"]), np.float32(1)))
    (run / "bad_step" / "report.json").write_text(json.dumps(report))
    assert capsule.replay(run / "bad_step") == 1
    assert f"{total - 1} of {total} scalars" in capsys.readouterr().out
    (run / "bad_step" / "report.json").write_text(json.dumps({"step": 4}))
    with pytest.raises(UserError, match=r"damaged \(KeyError\); the run writes another"):
        capsule.replay(run / "bad_step")
    path = run / "bad_step" / "batch.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        capsule.replay(run / "bad_step")
    path.unlink()
    with pytest.raises(UserError, match=r"no batch\.npz there; write the folder bad_step of a run"):
        capsule.replay(run / "bad_step")


@pytest.mark.soak
def test_a_spike_is_skipped_as_what_is_not_finite(tmp_path, corpus, stream, monkeypatch, capsys):
    """The norms are given: of step 5 alone the bound lies below its own."""
    monkeypatch.setattr(Norms, "largest", lambda self, step: 1e-6 if step == 5 else np.inf)
    run = tmp_path / "run"
    assert train(config(corpus, "skip", guard__spike=4.0, checkpoint__every_steps=1), run) == DONE
    assert arrays(run, 4) == arrays(run, 5) != arrays(run, 6)
    assert [row["step"] for row in journal.read(run / journal.NAME)] == [4, 5]
    assert "is a spike; its update is skipped (2 of at most 10" in capsys.readouterr().err
    assert len(checkpoints.read_meta(run, 6)["norms"]) == 4


@pytest.mark.parametrize(("policy", "code"), [("warn", DONE), ("stop", NOT_AGAIN)])
def test_a_collapse_is_a_line_or_the_end(tmp_path, corpus, stream, monkeypatch, policy, code, capsys):
    """Class tokens that differ by less than a bound which none reaches; warm-up is over after step 2, 4 is NaN."""
    monkeypatch.setattr(collapse, "SPREAD", 100.0)
    monkeypatch.setattr(collapse, "TIMES", 2)
    run = tmp_path / "run"
    assert train(config(corpus, "skip", guard__collapse=policy, checkpoint__every_steps=9), run) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "has collapsed" in line]
    assert len(lines) == 1 and "step 6: all images get one class token" in lines[0]


def test_a_collapse_is_three_logged_steps_after_the_warm_up():
    seen = collapse.Collapse(warmup_steps=10)
    low, high = collapse.SPREAD / 2, collapse.SPREAD * 2
    early, late = [low, low, low, low, high], [low, low, low, low, high, low, low]
    steps = range(2, 26, 2)
    assert [step for step, spread in zip(steps, early + late, strict=True) if seen.begins(step, spread)] == [16]


def test_the_bound_is_of_the_median_and_of_norms_that_every_life_has_read():
    norms = Norms(3.0, {})
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(size=300).tolist()
    for step, norm in enumerate(drawn, 1):
        norms.add(step, norm)
        known = drawn[: max(step - LAG + 1, 0)][-KNOWN:]  # of the step after the next
        resumed = Norms(3.0, json.loads(json.dumps(norms.known())))
        expected = 3.0 * np.median(known) if len(known) >= FEWEST else np.inf
        assert norms.largest(step + 1) == resumed.largest(step + 1) == pytest.approx(expected, rel=1e-12)
    assert len(norms.known()) <= KNOWN + LAG
    assert Norms(0.0, {str(n): 1.0 for n in range(100)}).largest(103) == np.inf


@pytest.mark.parametrize("line", ["{", '{"step": 3}', '{"step": 3, "done": "rewind"}', "[]"])
def test_a_damaged_journal_is_one_line(tmp_path, line):
    (tmp_path / journal.NAME).write_text('{"step": 1, "done": "skip"}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        journal.read(tmp_path / journal.NAME)


def test_what_a_full_disk_does_not_take_is_said(tmp_path, monkeypatch, capsys):
    """The journal is needed, so the run ends; the report is not, and the line says that there is none."""
    noted = journal.Journal(tmp_path, 0)
    monkeypatch.setattr(files, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"bad_steps\.jsonl: a bad step cannot be noted \(No space left on device\)"):
        noted.add({"step": 1, "done": "skip"})
    report = {"step": 1, "metrics": {"loss": "nan"}, "batch": []}
    why = reports.keep_bad_step(tmp_path, report)
    assert not any(tmp_path.iterdir())
    reports.bad_end(tmp_path, 1, report, False, why, "")
    said = capsys.readouterr().err
    assert "its images could not be listed (No space left on device), --replay=" in said and said.count("\n") == 1
