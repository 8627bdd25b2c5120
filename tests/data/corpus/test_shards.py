"""Shards against ArrayRecord and TensorFlow Datasets."""

import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.corpus import layout, shards
from curia2_jax.data.corpus.records import CorruptRecord


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 300, 16_384, 3_000_000])
def test_examples_are_those_of_tensorflow_datasets(length):
    """Byte for byte."""
    record = np.random.default_rng(length).bytes(length)
    features = tfds.features.FeaturesDict({"slice": tfds.features.Tensor(shape=(), dtype=np.object_)})
    example = features.serialize_example(features.encode_example({"slice": record}))
    assert shards.to_example(record) == example
    assert bytes(shards.from_example(example)) == record


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=10))
def test_other_bytes_raise_corrupt_record(data, tail):
    """Random ones, and examples with more behind them."""
    with pytest.raises(CorruptRecord):
        shards.from_example(data)
    with pytest.raises(CorruptRecord):
        shards.from_example(shards.to_example(data) + tail + b"x")


@pytest.mark.parametrize("lengths", [[1], [3, 4, 5], [16_384] * 12])
def test_metadata_is_that_of_tensorflow_datasets(tmp_path, lengths):
    """Byte for byte."""
    theirs, ours, total = tmp_path / "theirs", tmp_path / "ours", 7 * 10**13 + 1
    for folder in (theirs, ours):
        folder.mkdir()
        for shard in range(len(lengths)):
            (folder / layout.shard(shard, len(lengths))).touch()
    template = tfds.core.ShardedFileTemplate(
        data_dir=theirs, dataset_name="curia", split="slices", filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=theirs,
        features=tfds.features.FeaturesDict({"slice": tfds.features.Tensor(shape=(), dtype=np.object_)}),
        split_infos=[
            tfds.core.SplitInfo(name="slices", shard_lengths=lengths, num_bytes=total, filename_template=template)
        ],
        version="1.0.0",
        check_data=False,
    )
    shards.write_metadata(ours, lengths, total)
    assert {p.name for p in theirs.iterdir()} == {p.name for p in ours.iterdir()}
    for name in ("dataset_info.json", "features.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert tfds.builder_from_directory(ours).info.splits["slices"].num_examples == sum(lengths)


def write(path: pathlib.Path, count: int, mark: bytes) -> None:
    writer = shards.writer(path)
    for n in range(count):
        writer.write(shards.to_example(mark + str(n).encode()))
    writer.close()


def test_reads_many_shards_with_few_open(tmp_path):
    """Never more than the bound."""
    paths = [tmp_path / str(n) for n in range(6)]
    for n, path in enumerate(paths):
        write(path, 5, str(n).encode())
    reader = shards.ShardReader(paths, max_open=2)
    for shard, row in np.random.default_rng(0).integers(0, (6, 5), (60, 2)).tolist():
        assert bytes(reader.read(shard, row)) == f"{shard}{row}".encode()
        assert len(reader._open) <= 2
    assert shards.count(paths[0]) == 5


def test_missing_broken_and_short_shards_are_corrupt(tmp_path):
    """And nothing else is raised."""
    write(tmp_path / "short", 2, b"a")
    (tmp_path / "broken").write_bytes(b"x" * 100_000)
    reader = shards.ShardReader([tmp_path / "none", tmp_path / "broken", tmp_path / "short"])
    for shard, row in ((0, 0), (1, 0), (2, 2)):
        with pytest.raises(CorruptRecord):
            reader.read(shard, row)
