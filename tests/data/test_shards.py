import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data import shards
from curia2_jax.data.records import CorruptRecord


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 300, 16_384, 3_000_000])
def test_examples_are_those_of_tensorflow_datasets(length):
    record = np.random.default_rng(length).bytes(length)
    features = tfds.features.FeaturesDict({"slice": tfds.features.Tensor(shape=(), dtype=np.object_)})
    example = features.serialize_example(features.encode_example({"slice": record}))
    assert shards.to_example(record) == example
    assert bytes(shards.from_example(example)) == record


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=10))
def test_other_bytes_raise_corrupt_record(data, tail):
    with pytest.raises(CorruptRecord):
        shards.from_example(data)
    with pytest.raises(CorruptRecord):
        shards.from_example(shards.to_example(data) + tail + b"x")


def write(path: pathlib.Path, count: int, mark: bytes) -> None:
    writer = shards.writer(path)
    for n in range(count):
        writer.write(shards.to_example(mark + str(n).encode()))
    writer.close()


def test_reads_many_shards_with_few_open(tmp_path):
    paths = [tmp_path / str(n) for n in range(6)]
    for n, path in enumerate(paths):
        write(path, 5, str(n).encode())
    reader = shards.ShardReader(paths, max_open=2)
    for shard, row in np.random.default_rng(0).integers(0, (6, 5), (60, 2)).tolist():
        assert bytes(reader.read(shard, row)) == f"{shard}{row}".encode()
        assert len(reader._open) <= 2
    assert shards.count(paths[0]) == 5


def test_missing_broken_and_short_shards_are_corrupt(tmp_path):
    write(tmp_path / "short", 2, b"a")
    (tmp_path / "broken").write_bytes(b"x" * 100_000)
    reader = shards.ShardReader([tmp_path / "none", tmp_path / "broken", tmp_path / "short"])
    for shard, row in ((0, 0), (1, 0), (2, 2)):
        with pytest.raises(CorruptRecord):
            reader.read(shard, row)
