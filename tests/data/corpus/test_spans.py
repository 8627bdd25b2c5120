"""Records at the places that the index keeps."""

import os
import threading

import numpy as np
import pytest

from curia2_jax.data.corpus import shards, spans
from curia2_jax.data.corpus.records import CorruptRecord
from curia2_jax.errors import UserError


@pytest.mark.parametrize(
    "sizes", [[0, 1, 5], [200] * 700, [65_000, 65_400, 65_536, 70_000, 131_100], [300_000, 40, 1 << 20]]
)
def test_places_hold_what_arrayrecord_reads(tmp_path, sizes):
    """Also across the headers of blocks."""
    rng = np.random.default_rng(0)
    written = [rng.bytes(size) for size in sizes]
    writer = shards.writer(tmp_path / "a")
    for record in written:
        writer.write(shards.to_example(record))
    writer.close()
    offsets, lengths = spans.locate(tmp_path / "a", len(sizes))
    reader, slow = spans.SpanReader([tmp_path / "a"]), shards.ShardReader([tmp_path / "a"])
    for row, record in enumerate(written):
        found = bytes(reader.read(0, int(offsets[row]), int(lengths[row])))
        assert found == record == bytes(slow.read(0, row))
    with pytest.raises(CorruptRecord, match="records, not"):
        spans.locate(tmp_path / "a", len(sizes) + 5)


def test_every_alignment_to_the_blocks(tmp_path):
    """Records of all lengths around those that end a block, so that headers fall everywhere."""
    rng = np.random.default_rng(1)
    written = [rng.bytes(int(n)) for n in rng.integers(64_500, 66_500, 400)]
    writer = shards.writer(tmp_path / "a")
    for record in written:
        writer.write(shards.to_example(record))
    writer.close()
    offsets, lengths = spans.locate(tmp_path / "a", 400)
    reader = spans.SpanReader([tmp_path / "a"])
    for row, record in enumerate(written):
        assert bytes(reader.read(0, int(offsets[row]), int(lengths[row]))) == record


def test_wrong_places_are_corrupt_and_lost_files_are_named(tmp_path):
    """And nothing else is raised."""
    writer = shards.writer(tmp_path / "a")
    writer.write(shards.to_example(b"x" * 500))
    writer.close()
    ((offset,), (span,)) = spans.locate(tmp_path / "a", 1)
    reader = spans.SpanReader([tmp_path / "a", tmp_path / "none"])
    for at, length in ((offset + 1, span), (offset, span - 1)):
        with pytest.raises(CorruptRecord):
            reader.read(0, int(at), int(length))
    with pytest.raises(UserError, match="/none: No such file or directory; put it back from a copy"):
        reader.read(1, 0, 10)
    os.truncate(tmp_path / "a", offset + span - 1)
    with pytest.raises(UserError, match=f"/a: ends at a record from byte {offset} to {offset + span}; put it back"):
        reader.read(0, int(offset), int(span))


def test_many_threads_and_few_open_files(tmp_path):
    """Every thread gets what it asked for."""
    for n in range(12):
        writer = shards.writer(tmp_path / str(n))
        writer.write(shards.to_example(bytes([n]) * 1000))
        writer.close()
    ((offset,), (span,)) = spans.locate(tmp_path / "0", 1)
    reader, wrong = spans.SpanReader([tmp_path / str(n) for n in range(12)], max_open=2), []

    def work(seed):
        for n in np.random.default_rng(seed).integers(0, 12, 300).tolist():
            if bytes(reader.read(n, int(offset), int(span))) != bytes([n]) * 1000:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(reader._open) <= 2
