"""A corpus, alone or in a mixture, against what was written."""

import contextlib
import gc
import itertools
import json
import os
import pathlib
import pickle
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from curia2_jax.data.corpus import index, layout, records
from curia2_jax.data.corpus.corpus import Corpus, parse, patient_hash
from curia2_jax.errors import UserError
from tests.data.small_corpus import write_small_corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora") / "small"
    return folder, write_small_corpus(folder, series=6, slices=5, shards=3)


def test_reads_every_slice(made):
    """Also into memory that is handed in."""
    folder, written = made
    corpus = pickle.loads(pickle.dumps(Corpus(folder)))
    assert len(corpus) == len(written) == 30 and len(pickle.dumps(corpus)) < 400
    for i, pixels in enumerate(written):
        np.testing.assert_array_equal(corpus.read(i), pixels)
    out = np.zeros(written[7].shape, np.int16)
    assert corpus.read(7, out) is out and (out == written[7]).all()
    for wrong in (-1, 30):
        with pytest.raises(IndexError):
            corpus.read(wrong)


def test_opens_with_tensorflow_datasets_without_tensorflow(made):
    """The same records in the same places."""
    folder, written = made
    source = tfds.builder_from_directory(folder).as_data_source("slices")
    assert len(source) == 30 and "tensorflow" not in sys.modules
    corpus = Corpus(folder)
    place = {(s, r): i for i, (s, r) in enumerate(zip(corpus.column("shard"), corpus.column("row"), strict=True))}
    start = np.cumsum([0, *corpus.contract["shard_lengths"]])
    for (shard, row), i in place.items():
        np.testing.assert_array_equal(records.decode(source[int(start[shard] + row)]["slice"]), written[i])


def test_columns_are_those_of_the_parquet_index(made):
    """Whole, in parts, and as packed rows."""
    folder, _ = made
    corpus, table = Corpus(folder), pq.read_table(folder / layout.INDEX)
    assert table.schema.names == index.SCHEMA.names
    some = np.array([29, 3, 3, 11])
    for name in index.SCHEMA.names:
        expected = np.array(table.column(name).to_pylist())
        np.testing.assert_array_equal(corpus.column(name), expected)
        np.testing.assert_array_equal(corpus.take(name, some), expected[some])
    assert isinstance(corpus.column("height"), np.memmap) and corpus.column("height") is corpus.column("height")
    packed = corpus.rows(some)
    assert packed.dtype == index.ROW and index.ROW.itemsize == 56
    for name in packed.dtype.names[:-1]:
        expected = table.column(name).to_numpy()[some]
        assert packed[name].dtype == expected.dtype
        np.testing.assert_array_equal(packed[name], expected)
    assert packed["is_ct"].tolist() == [m == "CT" for m in table.column("modality").to_numpy()[some]]
    files = {path.name for path in (folder / layout.COLUMNS).iterdir()}
    assert {"rows.npy", "position.npy"} <= files and "height.npy" not in files  # one truth
    with pytest.raises(KeyError, match="nonsense"):
        corpus.column("nonsense")


@pytest.mark.skipif(not pathlib.Path("/proc/self/smaps").exists(), reason="Linux tells the advice of a mapping")
def test_rows_are_not_read_ahead_but_columns_are(made):
    """As the operating system tells of the mappings."""
    corpus, rows = Corpus(made[0]), str(made[0] / layout.COLUMNS / "rows.npy")

    def advised() -> list[bool]:
        """Whether each mapping of the file is advised to be random ("rr"), sorted."""
        flags = itertools.pairwise(pathlib.Path("/proc/self/smaps").read_text().split("VmFlags:"))
        return sorted("rr" in after.splitlines()[0].split() for before, after in flags if rows in before)

    others = advised()
    corpus.rows(np.arange(3))
    corpus.column("height")
    assert sorted([*others, False, True]) == advised()


def test_threads_may_open_it_at_once(made):
    """As the first batch of a loader does. Garbage collection that runs Python code, as JAX's does, lets threads change
    places while NumPy reads a header, which CPython 3.11 does not survive."""
    folder, _ = made
    interval, threshold, faults = sys.getswitchinterval(), gc.get_threshold(), []

    def open_often() -> None:
        try:
            for _ in range(200):
                corpus = Corpus(folder)
                for name in ("slope", "intercept", "position", "height"):
                    corpus.column(name)
        except Exception as fault:
            faults.append(fault)

    def collected(*_) -> None:
        sum(range(50))

    gc.callbacks.append(collected)
    gc.set_threshold(50)
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=open_often) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected)
    assert not faults


def test_keys_stay_on_disk(tmp_path):
    """Neither filters nor splits nor names of slices make a copy of the keys."""
    write_small_corpus(tmp_path / "c", series=40, slices=1)
    corpus, before = Corpus(tmp_path / "c"), pa.total_allocated_bytes()
    corpus.sampler(where="series!=series3", split="train", held_out=0.5, temperature=2.0, cap=1)
    assert corpus.take("patient", np.array([39, 2])).tolist() == ["patient19", "patient1"]
    assert pa.total_allocated_bytes() == before


def test_a_missing_vocabulary_is_told(tmp_path):
    """Or a damaged one, in one line."""
    write_small_corpus(tmp_path / "c", series=2, slices=1)
    for damage in (lambda file: file.write_bytes(b"nonsense"), lambda file: file.unlink()):
        damage(tmp_path / "c" / layout.COLUMNS / "series.vocabulary.arrow")
        with pytest.raises(UserError, match="index column series cannot be read"):
            Corpus(tmp_path / "c").take("series", np.array([0]))


def test_series_and_counts_of_a_mixture(made, tmp_path, monkeypatch):
    """Those of its corpora, in order."""
    write_small_corpus(tmp_path / "b", series=3, slices=4, shards=1)
    monkeypatch.setattr("curia2_jax.data.corpus.corpus.BLOCK", 7)
    corpus = Corpus(f"{made[0]},{tmp_path / 'b'}")
    first, count = corpus.series()
    assert first.tolist() == [0, 5, 10, 15, 20, 25, 30, 34, 38] and count.tolist() == [5] * 6 + [4] * 3
    for name in ("series", "patient", "modality", "label"):
        values, slices = np.unique(corpus.column(name), return_counts=True)
        assert corpus.counts(name) == dict(zip(values.tolist(), slices.tolist(), strict=True))


def test_a_mixture_reads_and_weighs_its_corpora(made, tmp_path):
    """Draws come in the proportion of the weights."""
    folder, written = made
    other = write_small_corpus(tmp_path / "b", series=2, slices=3, seed=9)
    corpus = Corpus(f"{folder}:3,{tmp_path / 'b'}")
    assert len(corpus) == 36 and corpus.contract["weights"] == [3.0, 1.0] and len(corpus.contract["hash"]) == 64
    np.testing.assert_array_equal(corpus.read(29), written[29])
    np.testing.assert_array_equal(corpus.read(30), other[0])
    assert corpus.take("series", np.array([35, 0, 29])).tolist() == ["series1", "series0", "series5"]
    assert corpus.column("modality").tolist() == corpus.take("modality", np.arange(36)).tolist()
    some = np.array([35, 0, 29, 30, 0])
    for name in ("height", "width", "anatomy_x", "shard", "offset"):
        np.testing.assert_array_equal(corpus.rows(some)[name], corpus.column(name)[some])
    assert corpus.rows(some)["is_ct"].tolist() == (corpus.column("modality")[some] == "CT").tolist()
    every = written + other
    assert corpus.contract["largest"] == [max(s.shape[axis] for s in every) for axis in (0, 1)]
    drawn = corpus.sampler().records(np.arange(4000), 0)
    assert abs((drawn < 30).mean() - 0.75) < 2e-3


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", 30),
        ("modality=CT", 15),
        ("modality=CT|MR,plane=axial", 30),
        ("modality!=CT, position<2", 6),
        ("position>=1,position<=3", 18),
        ("label=", 30),
        ("series=series4", 5),
        ("position=4", 6),
    ],
)
def test_conditions(made, where, expected):
    """Alone and together, on text and on numbers."""
    sampler = Corpus(made[0]).sampler(where=where)
    assert len(sampler) == expected == len(np.unique(sampler.records(np.arange(expected), 0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "nonsense=1"}, "where: found 'nonsense=1'"),
        ({"where": "modality<CT"}, "takes = or !="),
        ({"where": "position>x"}, "write a number"),
        ({"where": "position>99"}, "no slice left"),
        ({"split": "both"}, "split"),
        ({"cap": 0}, "cap"),
        ({"temperature": 0.5}, "temperature"),
    ],
)
def test_wrong_options_are_told_in_one_line(made, options, message):
    """With what to write instead."""
    with pytest.raises(UserError, match=message) as error:
        Corpus(made[0]).sampler(**options)
    assert "\n" not in str(error.value)


def test_split_parts_patients_and_stays(tmp_path):
    """More held out means the same patients and others."""
    write_small_corpus(tmp_path / "c", series=40, slices=2)
    corpus = Corpus(tmp_path / "c")
    train, held = (
        set(corpus.sampler(split=split, held_out=0.4).records(np.arange(80), 0).tolist())
        for split in ("train", "held_out")
    )
    assert not train & held and len(train | held) == 80 and held
    patients = corpus.column("patient")
    assert not {patients[i] for i in train} & {patients[i] for i in held}
    assert all(patient_hash(patients[i]) < 0.4 for i in held)
    more = set(corpus.sampler(split="held_out", held_out=0.6).records(np.arange(80), 0).tolist())
    assert held <= more  # nobody moves from held out to train when the share grows


def test_temperature_evens_out_modalities(tmp_path):
    """From as they occur to equal shares."""
    write_small_corpus(tmp_path / "c", series=3, slices=8)  # two CT, one MR
    corpus = Corpus(tmp_path / "c")
    is_ct = corpus.column("modality") == "CT"
    for temperature, share in ((1.0, 2 / 3), (2.0, np.sqrt(2) / (1 + np.sqrt(2))), (1e9, 0.5)):
        drawn = corpus.sampler(temperature=temperature).records(np.arange(40_000), 1)
        assert abs(is_ct[drawn].mean() - share) < 1e-3


def test_what_is_not_a_corpus_is_told_in_one_line(tmp_path, made):
    """An empty folder, an ingest that goes on, and a contract that is damaged or of another version."""
    with pytest.raises(UserError, match=r"no corpus .no contract.json."):
        Corpus(tmp_path)
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match="has not finished"):
        Corpus(tmp_path)
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Corpus(tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Corpus(tmp_path)
    with pytest.raises(UserError, match="weight"):
        Corpus(f"{made[0]}:0,{tmp_path}")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: None, ""),
        (pathlib.Path.unlink, "-00001-of-00003: No such file or directory; put it back from a copy"),
        (lambda path: os.truncate(path, 1000), "-00001-of-00003: 1,000 bytes, its last record ends at "),
        (lambda path: path.open("ab").close() or path.write_bytes(path.read_bytes() + b"."), "the contract says"),
    ],
)
def test_a_shard_that_is_lost_or_shortened_is_named_by_its_size(tmp_path, harm, words):
    write_small_corpus(tmp_path, series=6, slices=5, shards=3)
    harm(tmp_path / layout.shard(1, 3))
    corpus = Corpus(tmp_path)
    with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
        corpus.check_shards()


def test_parse(tmp_path):
    """A folder of that very name comes first."""
    assert parse(f"{tmp_path}:2.5,b:1e-1, c") == [
        (tmp_path, 2.5),
        (tmp_path.__class__("b"), 0.1),
        (tmp_path.__class__("c"), 1.0),
    ]
    (tmp_path / "a:1,b").mkdir()
    assert parse(str(tmp_path / "a:1,b")) == [(tmp_path / "a:1,b", 1.0)]


@pytest.mark.parametrize("codec", sorted(records.CODECS))
def test_a_flipped_bit_in_a_shard_never_gives_other_voxels(tmp_path, codec):
    """It is told, or changes nothing."""
    written = write_small_corpus(tmp_path / "c", series=2, slices=3, shards=1, codec=codec)
    path = tmp_path / "c" / layout.shard(0, 1)
    whole, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        data = bytearray(whole)
        bit = int(rng.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        corpus = Corpus(tmp_path / "c")
        for i, pixels in enumerate(written):
            try:
                np.testing.assert_array_equal(corpus.read(i), pixels)
            except records.CorruptRecord:
                noticed += 1
    assert noticed > 0
