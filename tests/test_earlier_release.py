"""What release 0.1.0 wrote opens here: a corpus of noise, a run of a tiny model at step 11 of 12, and its export."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training import checkpoints, prepare, salvage
from curia2_jax.training.loop import DONE, train
from tests.training.tiny import tiny_config

# Of step 12, when 0.1.0 itself went on from there.
LOSS, DINO, GRADIENT = 34.42737579345703, 1.6885216236114502, 303.2384033203125


@pytest.fixture
def written(tmp_path, monkeypatch):
    with tarfile.open(pathlib.Path(__file__).parent / "earlier_release.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_corpus_is_read(written):
    """Every record passes its checksum."""
    corpus = Corpus(written / "corpus")
    assert [corpus.read(i).dtype for i in range(len(corpus))] == [np.int16] * 12


def test_its_checkpoints_are_read_and_said_to_have_no_fingerprints(written):
    assert list(salvage.verdicts(written / "run")) == [(11, 0)]


def test_its_run_goes_on(written, monkeypatch):
    """The keys of its config are those of then; batch, loss and gradients are those that it would have had."""
    monkeypatch.setattr(prepare, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
    config = tiny_config(
        data__corpus="corpus", total_steps=12, checkpoint__every_steps=10, checkpoint__latest=1, model__remat="none"
    )
    assert train(config, written / "run") == DONE
    (row,) = [json.loads(line) for line in (written / "run" / "metrics.jsonl").read_text().splitlines()][-1:]
    assert row["step"] == 12
    assert row["loss"] == pytest.approx(LOSS, rel=1e-5)
    assert row["dino_global"] == pytest.approx(DINO, rel=1e-5)
    assert row["grad_norm/backbone"] == pytest.approx(GRADIENT, rel=1e-4)


def test_its_export_is_the_teacher_of_its_run(written):
    """Stock transformers loads it; a weight is the array of the checkpoint, to the bit."""
    model = transformers.AutoModel.from_pretrained(written / "exported")
    teacher, _ = checkpoints.restore_teacher(written / "run", 11)
    kernel = teacher["backbone"]["blocks"]["attn"]["query"]["kernel"][1]
    weights = safetensors.numpy.load_file(written / "exported" / "model.safetensors")
    np.testing.assert_array_equal(weights["encoder.layer.1.attention.attention.query.weight"], kernel.T)
    with torch.inference_mode():
        assert torch.isfinite(model(torch.zeros(1, 1, 32, 32)).last_hidden_state).all()
