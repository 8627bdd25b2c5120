"""What class tokens are asked: against counts on label maps of phantom studies, and on tokens that know or do not."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import heads, questions, questions_picture
from curia2_jax.data.readers import phantom

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six phantom studies, ingested as a user would."""
    folder = tmp_path_factory.mktemp("questions")
    phantom.write_studies(folder / "studies", 6, seed=2, size=48)
    line = [sys.executable, "launch/ingest.py", f"--input={folder / 'studies'}", f"--output={folder / 'corpus'}"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder / "corpus"


def test_a_slice_has_what_its_label_map_shows(corpus):
    """As many slices show each organ as in the studies themselves; heights run from 0 to 1; patients are split."""
    labelled = questions.read(corpus)
    studies = [phantom.make_study(2, number, 48) for number in range(6)]
    shown = np.array([[(one.labels[..., z] == k).sum() >= 32 for k in phantom.LABELS]
                      for one in studies for z in range(one.labels.shape[2])])  # fmt: skip
    asked = sorted(shown.sum(0)[shown.any(0)].tolist())
    assert len(labelled.slices) == len(shown)
    found = sorted(labelled.present.sum(0).tolist())
    assert found and not set(found) - set(asked) and sum(found) <= sum(asked)
    for patient in np.unique(labelled.patients):
        own = labelled.height[labelled.patients == patient]
        assert own.min() == 0 and own.max() == 1 and len(set(labelled.test[labelled.patients == patient])) == 1
    assert len(set(labelled.patients[labelled.test])) == 3


def invented(patients=30, slices=20):
    """Slices of which one structure lies in the lower half and one in the upper."""
    height = np.tile(np.linspace(0, 1, slices), patients)
    names = np.repeat([f"p{number:02d}" for number in range(patients)], slices)
    present = np.stack([height < 0.45, height > 0.55], axis=1)
    return questions.Labelled(
        np.arange(len(height)), present, height, names, np.isin(names, np.unique(names)[::2]), present
    )


def tokens_of(labelled, noise, seed):
    """(n, 8): a curve along the height, and noise."""
    angle = np.outer(labelled.height, [1, 2, 3, 4])
    clean = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return (clean + noise * np.random.default_rng(seed).normal(size=clean.shape)).astype(np.float32)


BEGAN = "the weights it began with"


def test_tokens_that_know_are_above_tokens_that_do_not():
    """By both heads, with all labelled patients and with five."""
    labelled = invented()
    rows = {"trained": tokens_of(labelled, 0.1, 0), BEGAN: tokens_of(labelled, 5.0, 1)}
    answers = questions.compare(labelled, rows)
    assert [(one.question, one.labelled, one.head) for one in answers] == [
        (question, count, head)
        for question in (questions.PRESENT, questions.HEIGHT)
        for count in (15, 5)
        for head in ("kNN", "linear probe")
    ]
    for one in answers:
        assert one.scores["trained"][0] > 0.85 and one.gains[BEGAN][1] > 0.1 and one.patients == 15
        assert one.gains[BEGAN][0] == pytest.approx(one.scores["trained"][0] - one.scores[BEGAN][0])
    assert questions.verdict(answers) == [
        "By its class token, without masks, the trained backbone is above the weights it began with in all 8 "
        "comparisons."
    ]


def test_five_patients_are_drawn_five_times(monkeypatch):
    """Each time five whole patients of those to learn from; the score is the mean, and the same ones serve all rows."""
    seen = []

    def spy(problem):
        seen.append((len(np.unique(problem.groups)), len(problem.train), problem.targets.sum()))
        return heads.Prediction(problem.test[:, : problem.targets.shape[1]] * len(seen), {})

    monkeypatch.setattr(questions, "HEADS", {"kNN": spy})
    labelled = invented()._replace(height=np.zeros(600))
    tokens = tokens_of(labelled, 0.1, 0)
    (every, few) = questions.compare(labelled, {"trained": tokens, BEGAN: tokens})
    assert (every.labelled, few.labelled) == (15, 5)  # and the height, which all slices share, is not asked
    assert seen[:2] == [(15, 300, seen[0][2])] * 2 and [one[:2] for one in seen[2:]] == [(5, 100)] * 10
    assert seen[2:7] == seen[7:] and few.gains[BEGAN] == [0, 0, 0]


def test_equal_tokens_are_not_told_apart_and_worse_ones_are_below():
    labelled = invented(patients=24)
    good, bad = tokens_of(labelled, 0.1, 0), tokens_of(labelled, 5.0, 1)
    same = questions.compare(labelled, {"trained": good, "pixels": good, BEGAN: bad})
    assert all(one.gains["pixels"] == [0, 0, 0] for one in same)
    level, above = questions.verdict(same)
    assert "backbone is not distinguishable from pixels in all 8 comparisons" in level
    assert f"above {BEGAN} in all 8" in above
    (below,) = questions.verdict(questions.compare(labelled, {"trained": bad, "good": good}))
    assert "below good in all 8" in below


def test_both_sides_of_a_mixed_verdict_are_named():
    score = [0.5, 0.4, 0.6]
    answers = [
        questions.Answer("present, AUROC", head, 20, {"trained": score}, {BEGAN: gain}, 20)
        for head, gain in (("kNN", [0.1, 0.05, 0.15]), ("probe", [-0.1, -0.2, 0.1]))
    ]
    assert questions.verdict(answers) == [
        "By its class token, without masks, the trained backbone is beside the weights it began with: above in 1 "
        "(present by kNN from 20 patients); not distinguishable from in 1 (present by probe from 20 patients)."
    ]
    assert questions.verdict([one._replace(patients=9) for one in answers]) == [
        "Not judged: 9 test patients, fewer than 10."
    ]


def test_two_corpora_are_learned_from_and_tested_apart():
    """Labels are those that both have, and what nobody can learn is not asked."""
    one, other = invented(6), invented(8)
    wide = np.concatenate([np.zeros((len(one.slices), 1), bool), one.present, one.present[:, :1]], axis=1)
    narrow = np.concatenate([np.zeros((len(other.slices), 1), bool), other.present], axis=1)
    found = questions.apart(one._replace(all_present=wide), other._replace(all_present=narrow))
    assert found.test.sum() == len(one.slices) and not found.test[len(one.slices) :].any()
    np.testing.assert_array_equal(found.present, np.concatenate([one.present, other.present]))
    found = questions.apart(one._replace(all_present=wide), other._replace(all_present=np.zeros_like(narrow)))
    assert found.present.shape[1] == 0


def test_the_picture_has_every_row_of_every_question(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    true = Axes.errorbar
    monkeypatch.setattr(Axes, "errorbar", lambda *a, **how: drawn.append((len(a[1]), how["label"])) or true(*a, **how))
    labelled = invented(24)
    tokens = tokens_of(labelled, 0.1, 0)
    questions_picture.draw(tmp_path / "answers.png", questions.compare(labelled, {"trained": tokens, BEGAN: tokens}))
    assert drawn == [(4, "trained"), (4, BEGAN)] * 2
    assert (tmp_path / "answers.png").stat().st_size > 1000
