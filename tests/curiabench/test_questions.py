"""What class tokens are asked: against counts on label maps of phantom studies, and on tokens that know or do not."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import questions
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
    return questions.Labelled(np.arange(len(height)), present, height, names, np.isin(names, np.unique(names)[::2]))


def tokens_of(labelled, noise, seed):
    """(n, 8): a curve along the height, and noise."""
    angle = np.outer(labelled.height, [1, 2, 3, 4])
    clean = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return (clean + noise * np.random.default_rng(seed).normal(size=clean.shape)).astype(np.float32)


def test_tokens_that_know_are_above_tokens_that_do_not():
    labelled = invented()
    answers = questions.compare(labelled, tokens_of(labelled, 0.1, 0), tokens_of(labelled, 5.0, 1))
    assert [(one.question, one.head) for one in answers] == [
        (question, head) for question in (questions.PRESENT, questions.HEIGHT) for head in ("kNN", "linear probe")
    ]
    for one in answers:
        assert one.trained[0] > 0.9 and one.difference[1] > 0.1
        assert one.difference[0] == pytest.approx(one.trained[0] - one.baseline[0])
    assert questions.verdict(answers) == (
        "By its class token, without masks, the trained backbone is above the weights it began with: structures "
        "present by kNN, structures present by linear probe, height in the scan by kNN, height in the scan by linear "
        "probe."
    )


def test_equal_tokens_are_not_told_apart_and_worse_ones_are_below():
    labelled = invented()
    good, bad = tokens_of(labelled, 0.1, 0), tokens_of(labelled, 5.0, 1)
    same = questions.compare(labelled, good, good)
    assert all(one.difference == [0, 0, 0] for one in same)
    assert "not distinguishable from the weights it began with: structures present by kNN" in questions.verdict(same)
    assert "is below the weights it began with" in questions.verdict(questions.compare(labelled, bad, good))
