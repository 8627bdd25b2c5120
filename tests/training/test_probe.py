"""The probe of a run: whose slices it asks about, what it finds from step 0 on, and that it changes no step."""

import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from curia2_jax.data.corpus.corpus import Corpus, patient_hash
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.telemetry import metrics
from curia2_jax.telemetry.linear_dice import PENALTY
from curia2_jax.training import probe
from curia2_jax.training.loop import DONE, train
from curia2_jax.training.moments import moments
from curia2_jax.training.recipe import recipe_from
from tests.data.small_corpus import write_small_corpus
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """Eight series of four patients."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_small_corpus(folder, series=8)
    return folder


def asked(corpus: pathlib.Path, **changes) -> probe.Asked:
    return probe.choose(Corpus(corpus), recipe_from(tiny_config(data__corpus=str(corpus), **changes)))


def test_halves_share_no_patient_and_held_out_ones_are_not_trained_on(corpus):
    patients = np.asarray(Corpus(corpus).column("patient"))
    everyone = asked(corpus, probe__slices=48)
    assert not everyone.unseen and len(everyone.slices) == 48 == len(set(everyone.slices.tolist()))
    assert not set(patients[everyone.slices[everyone.test]]) & set(patients[everyone.slices[~everyone.test]])
    shares = sorted(patient_hash(one) for one in set(patients.tolist()))
    two = asked(corpus, probe__slices=48, data__held_out=(shares[1] + shares[2]) / 2)
    assert two.unseen and {patient_hash(one) for one in patients[two.slices]} == set(shares[:2])
    # A share that is nobody: all are asked about, and it is said.
    assert not asked(corpus, probe__slices=48, data__held_out=shares[0] / 2).unseen


def test_the_index_answers_and_so_does_a_token_that_knows_it(corpus):
    """Height is where a slice lies in its series; a question that one half cannot answer is none."""
    one = asked(corpus, probe__slices=48)
    height, modality, plane = one.questions
    np.testing.assert_allclose(height.targets[:, 0], one.slices % 6 / 5)
    assert plane.targets.shape == (48, 1)
    tokens = np.concatenate([height.targets, modality.targets], 1) @ np.random.default_rng(0).normal(size=(3, 8))
    found = probe.answers(one, tokens, np.ones(48, bool))
    assert set(found) == {"height_ridge", "height_knn", "modality_ridge", "modality_knn"}
    assert found["height_ridge"] > 0.99 and found["modality_ridge"] == 1
    assert probe.answers(one, tokens, one.test) == {}


def run(corpus: pathlib.Path, folder: pathlib.Path, every: int) -> pathlib.Path:
    config = tiny_config(data__corpus=str(corpus), probe__every_steps=every, probe__slices=40, log__every_steps=3)
    config["data"].update(group_size=1)
    assert train(config, folder) == DONE
    return folder


@pytest.mark.soak
def test_a_curve_from_step_0_on(corpus, tmp_path):
    looked = run(corpus, tmp_path / "run", 4)
    rows = {row["step"]: row for row in metrics.read(looked / "metrics.jsonl")[0]}
    assert list(rows) == [0, 3, 4, 6]
    assert [step for step, row in rows.items() if "probe/height_ridge" in row] == [0, 4, 6]
    for step in (0, 4, 6):
        found = {name: value for name, value in rows[step].items() if name.startswith(("probe", "monitor"))}
        assert {f"{kind}/{what}_{head}" for kind in ("probe", "probe_patch") for what in ("height", "modality")
                for head in ("ridge", "knn")} <= set(found)  # fmt: skip
        assert {"rankme", "lidar", "spread", "patch_cosine", "attention_entropy", "prototypes", "slices"} == {
            name.removeprefix("monitor/") for name in found if name.startswith("monitor")
        }
        assert all(np.isfinite(value) for value in found.values()), found
    assert "loss" not in rows[0] and rows[6]["update_ratio/backbone"] > 0


@pytest.mark.soak
def test_being_looked_at_changes_nothing(corpus, tmp_path):
    runs = [run(corpus, tmp_path / str(every), every) for every in (4, 0)]
    assert len({(one / "state.sha256").read_text() for one in runs}) == 1


def test_what_cannot_be_read_is_left_out(corpus, monkeypatch):
    """One damaged record among 48: the others answer."""
    from curia2_jax.data.corpus.records import CorruptRecord

    recipe = recipe_from(tiny_config(data__corpus=str(corpus), probe__slices=48))
    read = Corpus.read

    def damaged(self, i, *more):
        if i == 5:
            raise CorruptRecord("damaged")
        return read(self, i, *more)

    monkeypatch.setattr(Corpus, "read", damaged)
    one = probe.Probe.__new__(probe.Probe)
    one.asked, one._mesh, one._chunk = probe.choose(Corpus(corpus), recipe), make_mesh(recipe.parallel), 32
    batches = one._load(Corpus(corpus))
    usable = np.concatenate([batch["read"] for batch in batches])
    assert usable.sum() == 47 and not usable[5] and not usable[48:].any()
    assert not batches[0]["slices"][5].any() and batches[0]["extent"][5].tolist() == [1, 1]


def looked_at_in_chunks(corpus: Corpus, one: probe.Asked) -> None:
    """Linear Dice of tokens that are the mean and spread of the pixels of a patch, beside scikit-learn's ridge."""
    recipe = recipe_from(tiny_config(data__corpus=corpus.spec))

    def tokens(slices: np.ndarray) -> np.ndarray:
        side = slices.shape[1] // 4
        blocks = (
            slices[:, : 4 * side, : 4 * side]
            .reshape(-1, 4, side, 4, side)
            .swapaxes(2, 3)
            .reshape(len(slices), 16, -1)
            .astype(np.float32)
        )
        return np.stack([blocks.mean(2), blocks.std(2)], 2)

    def look(_, batch):
        found = tokens(np.asarray(batch["slices"]))
        few = {"class": np.repeat(found[:, :1], 2, 1), "patch": found.mean(1), "patch_cosine": found[:, 0, 0]}
        sums = moments(jnp.asarray(found), batch["shares"], batch["halves"])
        return few | sums | {"attention_entropy": np.ones(2), "read": batch["read"]}

    its = probe.Probe.__new__(probe.Probe)
    its.asked, its._mesh, its._chunk, its._recipe, its._look = one, make_mesh(recipe.parallel), 32, recipe, look
    its._batches = its._load(corpus)
    found = its._seen(SimpleNamespace(teacher={})).scalars()
    x = tokens(np.concatenate([batch["slices"] for batch in its._batches])[: len(one.slices)]).astype(np.float64)
    train, test = (x[half].reshape(-1, 2) for half in (~one.test, one.test))
    truths, truth = (one.dense.shares[half].reshape(len(some), -1).astype(np.float64)
                     for half, some in ((~one.test, train), (one.test, test)))  # fmt: skip
    model = make_pipeline(StandardScaler(), Ridge(PENALTY * len(train))).fit(train, truths)
    answers = model.predict(test)
    dice = 2 * (answers * truth).sum(0) / ((answers**2).sum(0) + (truth**2).sum(0))
    assert found["monitor/linear_dice"] == pytest.approx(dice.mean(), rel=1e-5)
    assert f"linear Dice of {truth.shape[1]} structures" in its.line() and 0.05 < dice.mean() < 1


def test_label_maps_of_the_corpus_are_asked_about(tmp_path):
    """Slices that show a structure, as many as in the phantoms themselves; a lost map is a mistake of one line."""
    phantom.write_studies(tmp_path / "studies", 3, seed=2, size=48)
    line = [sys.executable, "launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={tmp_path / 'corpus'}"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=300)
    studies = [phantom.make_study(2, number, 48) for number in range(3)]
    shown = [[(one.labels[..., z] == k).sum() >= 32 for k in phantom.LABELS]
             for one in studies for z in range(one.labels.shape[2])]  # fmt: skip
    one = asked(tmp_path / "corpus", probe__slices=1000)
    question = one.questions[-1]
    assert question.name == "structures" and question.rows.all()
    assert sorted(question.targets.sum(0)) == sorted(np.sum(shown, 0)[: question.targets.shape[1]])
    looked_at_in_chunks(Corpus(tmp_path / "corpus"), one)
    next((tmp_path / "corpus" / "labels").glob("*.npz")).unlink()
    with pytest.raises(UserError, match="label maps cannot be read"):
        asked(tmp_path / "corpus", probe__slices=1000)
