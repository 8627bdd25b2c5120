"""What --verify notices and --statistics counts."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit
from curia2_jax.errors import UserError
from tests.data.small_corpus import write_small_corpus


def silent(stage, done, total, slices):
    pass


@pytest.fixture
def corpus(tmp_path):
    write_small_corpus(tmp_path / "c", series=4, slices=5, shards=2)
    return tmp_path / "c"


def test_a_corpus_as_it_was_written(corpus):
    """There is nothing to say of it."""
    assert audit.verify(corpus, 0, silent) == []


def test_a_damaged_record_is_named(corpus):
    """By shard and number."""
    path = corpus / layout.shard(1, 2)
    data = bytearray(path.read_bytes())
    at = data.index(b"slice") + 200
    data[at] ^= 1
    path.write_bytes(data)
    (problem,) = audit.verify(corpus, 0, silent)
    assert path.name in problem and "record 0" in problem


def test_a_changed_index_is_noticed(corpus):
    """In the table or in a column."""
    table = pq.read_table(corpus / layout.INDEX)
    for name, message in (("position", "position.npy"), ("modality", "modality.npy")):
        column = table.column(name).to_pylist()
        column[3] = 99.0 if name == "position" else "MR"
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, [column]).cast(table.schema), corpus / layout.INDEX)
        assert any(message in problem for problem in audit.verify(corpus, 0, silent))
        np.save(
            corpus / "columns" / f"{name}.npy",
            np.array(column, np.float32) if name == "position" else [0] * 3 + [1] * 17,
        )
    assert any("content hash" in p or "differs" in p for p in audit.verify(corpus, 0, silent))


def test_changed_rows_are_noticed(corpus):
    """What only the packed rows say, and the contract's summary of them."""
    path = corpus / "columns" / "rows.npy"
    whole = np.load(path)
    for name in whole.dtype.names:
        changed = whole.copy()
        changed[name][7] = not whole[name][7] if name == "is_ct" else whole[name][7] + 1
        np.save(path, changed)
        problems = audit.verify(corpus, 0, silent)
        assert problems and all(f"columns/rows.npy: {name} " in problem for problem in problems)
    np.save(path, whole)
    assert audit.verify(corpus, 0, silent) == []
    contract = json.loads((corpus / "contract.json").read_text())
    assert contract["largest"] == [72, 56]
    (corpus / "contract.json").write_text(json.dumps(contract | {"largest": [72, 57]}))
    (problem,) = audit.verify(corpus, 0, silent)
    assert problem == "index.parquet: slices of up to [72, 56] pixels, the contract says [72, 57]"


def test_index_and_columns_changed_alike_do_not_fit_the_content_hash(corpus):
    """Which covers what the index says of pixels."""
    table = pq.read_table(corpus / layout.INDEX)
    values = table.column("slope").to_numpy() * 2
    place = table.schema.get_field_index("slope")
    pq.write_table(table.set_column(place, "slope", [values]).cast(table.schema), corpus / layout.INDEX)
    np.save(corpus / "columns" / "slope.npy", values)
    (problem,) = audit.verify(corpus, 0, silent)
    assert problem.startswith("content hash")


def test_missing_pieces_are_told(corpus, tmp_path):
    """A shard, or the whole corpus."""
    (corpus / layout.shard(0, 2)).unlink()
    assert any(layout.shard(0, 2) in problem for problem in audit.verify(corpus, 0, silent))
    with pytest.raises(UserError, match="no corpus"):
        audit.verify(tmp_path, 0, silent)


def test_statistics_count_what_is_there(corpus):
    """In a corpus whose numbers are known."""
    found = audit.statistics(corpus)
    assert (found["slices"], found["series"], found["patients"]) == (20, 4, 2)
    assert (found["slices of CT"], found["slices of MR"], found["axial slices"]) == (10, 10, 20)
    assert found["slices a series"] == "5 5 5 5 5" and found["labelled slices"] == 0
    assert found["height"].split()[0] == "64" and found["height"].split()[-1] == "72"


def test_statistics_do_not_depend_on_the_blocks(corpus, monkeypatch):
    """Blocks that cut series in two, against NumPy on whole columns."""
    for module in (audit.__name__, Corpus.__module__):
        monkeypatch.setattr(f"{module}.BLOCK", 3)
    found, columns = audit.statistics(corpus), Corpus(corpus).column
    pixels = columns("height").astype(int) * columns("width")
    assert found["bits per pixel"] == round(8 * found["bytes"] / pixels.sum(), 2)
    per_patient = np.unique(columns("patient"), return_counts=True)[1]
    for name, values in (("slices a patient", per_patient), ("foreground", columns("foreground"))):
        expected = np.quantile(values.astype(np.float64), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose([float(word) for word in found[name].split()], expected, rtol=1e-3)
    sizes, count = np.unique(np.stack([columns("height"), columns("width")]), axis=1, return_counts=True)
    for (height, width), n in zip(sizes.T, count, strict=True):
        assert f"{height} x {width}: {n}" in found["commonest sizes"]
