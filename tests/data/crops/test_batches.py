"""Batches of a small corpus with the real container: the same rows from anybody who makes them."""

import dataclasses
import gc
import hashlib
import logging
import os
import pathlib
import resource
import subprocess
import sys
import textwrap
import threading
import time

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from curia2_jax.data.corpus import layout, records
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops import batches, loader, masks
from curia2_jax.data.crops.batches import DataConfig
from curia2_jax.data.crops.boxes import CropsConfig
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.data.ingest import slicing
from curia2_jax.errors import UserError
from tests.data.small_corpus import write_small_corpus

CROPS = CropsConfig(
    placement="anatomical",
    global_size=32,
    local_size=16,
    num_local=3,
    unit="area",
    global_area=(0.32, 1.0),
    local_area=(0.05, 0.32),
    global_mm=(20.0, 40.0),
    local_mm=(6.0, 20.0),
    aspect=(3 / 4, 4 / 3),
    flip_rate=0.3,
)
MASKS = MasksConfig(placement="anatomical", probability=0.5, ratio=(0.1, 0.5))
PATCH = 4
PATCHES = 64
BATCH, GROUP = 16, 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(folder, slices in the order of the index): eight series of six slices between 64 x 48 and 72 x 56."""
    folder = tmp_path_factory.mktemp("batches") / "corpus"
    return folder, write_small_corpus(folder, series=8)


def config(folder, **changes):
    return dataclasses.replace(
        DataConfig(
            corpus=str(folder),
            where="",
            held_out=0.0,
            exclude="",
            global_batch=BATCH,
            group_size=GROUP,
            canvas=80,
            reduce=0,
            modality_temperature=1.0,
            max_slices_per_series=0,
            max_corrupt_rate=0.001,
            num_threads=2,
            num_workers=0,
            prefetch=2,
        ),
        **changes,
    )


def open_stream(data, start=0, stop=None, rows=None, seed=5, replaced=0):
    return batches.batches(
        data, CROPS, MASKS, PATCH, seed=seed, start_step=start, stop_step=stop, rows=rows, replaced=replaced
    )


def rows_of(stream):
    """Hash of every row: a list over steps of lists over rows."""
    hashes = []
    with stream:
        for batch in stream:
            names = sorted(batch)
            size = len(batch["slices"])
            hashes.append(
                [hashlib.sha256(b"".join(batch[n][r].tobytes() for n in names)).hexdigest() for r in range(size)]
            )
    return hashes


@pytest.fixture(scope="module")
def expected(corpus):
    hashes = rows_of(open_stream(config(corpus[0]), stop=51))
    assert len(hashes) == 51 and all(len(step) == BATCH for step in hashes)
    assert len({h for step in hashes for h in step}) == 51 * BATCH  # no two draws alike
    return hashes


def test_shapes_and_contents(corpus):
    """Slices are those of the corpus, boxes lie inside, masks hold what the ladder says."""
    folder, slices = corpus
    index = Corpus(folder)
    with open_stream(config(folder), stop=3) as stream:
        for step, batch in enumerate(stream):
            assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
                "slices": ((BATCH, 80, 80), np.int16),
                "extent": ((BATCH, 2), np.int32),
                "global_boxes": ((BATCH, 2, 4), np.float32),
                "local_boxes": ((BATCH, 3, 4), np.float32),
                "flips": ((BATCH, 5), bool),
                "masks": ((BATCH, 2, PATCHES), bool),
                "is_ct": ((BATCH,), bool),
            }
            for row, where in enumerate(stream.records_of_step(step)):
                record = int(where.split(",")[0].removeprefix("record "))
                height, width = slices[record].shape
                assert batch["extent"][row].tolist() == [height, width]
                np.testing.assert_array_equal(batch["slices"][row, :height, :width], slices[record])
                assert not batch["slices"][row, height:].any() and not batch["slices"][row, :, width:].any()
                assert batch["is_ct"][row] == (index.column("modality")[record] == "CT")
                assert f"series {index.column('series')[record]}, axial slice {record % 6}" in where
                for boxes in (batch["global_boxes"][row], batch["local_boxes"][row]):
                    assert (boxes >= 0).all() and (boxes <= [height, width] * 2).all()


def test_an_epoch_holds_every_slice_once(corpus):
    """Over all rows of its steps."""
    drawn = []
    with open_stream(config(corpus[0]), stop=6) as stream:
        for step, _ in enumerate(stream):
            drawn.append([where.split(",")[0] for where in stream.records_of_step(step)])
    first, second = np.concatenate(drawn[:3]), np.concatenate(drawn[3:])
    assert len(set(first)) == len(set(second)) == 48 == len(corpus[1])
    assert (first != second).any()


def test_groups_have_one_ladder(corpus):
    """Every group holds the same targets, each in another order; about half of the crops have no mask."""
    ladder = sorted(masks.ladder(GROUP, PATCHES, MASKS).tolist())
    orders = set()
    with open_stream(config(corpus[0]), stop=6) as stream:
        for batch in stream:
            for group in batch["masks"].reshape(-1, GROUP * 2, PATCHES).sum(-1).tolist():
                assert sorted(group) == ladder
                assert sum(group) == masks.masked_per_group(GROUP, PATCHES, MASKS)
                orders.add(tuple(group))
    assert len(orders) > 12  # of 24


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_change_nothing(corpus, expected, workers):
    """Spawned processes; their arrays have left the shared memory when the consumer sees them."""
    stream = open_stream(config(corpus[0], num_workers=workers), stop=51)
    assert rows_of(stream) == expected
    assert next(stream, None) is None


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_change_nothing(corpus, expected, threads):
    """Nor does how much is made ahead."""
    assert rows_of(open_stream(config(corpus[0], num_threads=threads, prefetch=1), stop=51)) == expected


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_change_nothing(corpus, expected, hosts):
    """Interleaved rows are those of the whole batch."""
    parts = np.split(np.arange(BATCH), hosts)
    streams = [rows_of(open_stream(config(corpus[0]), stop=51, rows=rows)) for rows in parts]
    assert [[row for part in step for row in part] for step in zip(*streams, strict=True)] == expected


def test_interleaved_rows_and_resuming(corpus, expected):
    """A host of two that shard parameters between them owns every other block of rows; both start at step 17."""
    for first in (0, 4):
        rows = np.concatenate([np.arange(first, first + 4), np.arange(first + 8, first + 12)])
        found = rows_of(open_stream(config(corpus[0]), start=17, stop=51, rows=rows))
        assert found == [[step[r] for r in rows] for step in expected[17:]]


def test_seeds_differ(corpus, expected):
    """In every row."""
    assert not set(rows_of(open_stream(config(corpus[0]), stop=1, seed=6))[0]) & {h for step in expected for h in step}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The same corpus with one bit flipped in each of two records: (folder, their numbers)."""
    folder = tmp_path_factory.mktemp("damaged") / "corpus"
    slices = write_small_corpus(folder, series=8)
    for number in (7, 40):
        record = records.encode(slices[number])
        for file in folder.glob("*.array_record-*"):
            content = bytearray(file.read_bytes())
            at = content.find(record)
            if at >= 0:
                content[at + len(record) // 2] ^= 1
                file.write_bytes(content)
                break
        else:
            raise AssertionError("record not found in any shard")
    return folder, (7, 40)


def test_corrupt_records_are_replaced(damaged, expected, caplog):
    """By the same slices whoever makes the row; every other row is untouched."""
    folder, numbers = damaged
    data = config(folder, max_corrupt_rate=1.0)
    with caplog.at_level(logging.WARNING, logger=batches.__name__):
        stream = open_stream(data, stop=51)
        found = rows_of(stream)
    differ = {(k, r) for k in range(51) for r in range(BATCH) if found[k][r] != expected[k][r]}
    drawn = {
        (k, r)
        for k in range(51)
        for r, where in enumerate(stream.records_of_step(k))
        if int(where.split(",")[0].removeprefix("record ")) in numbers
    }
    assert differ == drawn and len(drawn) == 2 * 17
    assert stream.seen == 51 * BATCH and stream.corrupt == {7: 17, 40: 17}
    assert "replaced" in " ".join(stream.records_of_step(0) + stream.records_of_step(1) + stream.records_of_step(2))
    assert sorted(message.split(": ")[1] for message in caplog.messages) == [
        "record 40, row 16 of shard 1",
        "record 7, row 7 of shard 0",
    ]
    halves = [rows_of(open_stream(data, start=1, stop=9, rows=rows)) for rows in (np.arange(8), np.arange(8, 16))]
    assert [a + b for a, b in zip(*halves, strict=True)] == found[1:9]


def test_the_limit_is_of_all_lives_of_a_run(damaged):
    """A run that is interrupted after every step stops at the row at which one left alone stops."""
    data = config(damaged[0], max_corrupt_rate=5e-4)

    def until_refused(lives):
        replaced = 0
        for start in range(51):
            stream = open_stream(data, start=start, stop=start + 1 if lives else 51, replaced=replaced)
            with stream:
                try:
                    seen = 0
                    for _ in stream:
                        seen += 1
                        if lives:
                            assert stream.replaced_before == replaced
                except UserError:
                    return start + seen
            replaced = stream.replaced
        return None

    assert until_refused(lives=True) == until_refused(lives=False) is not None


def test_a_lost_shard_is_told_before_the_first_batch_and_while_reading(tmp_path):
    write_small_corpus(tmp_path / "c", series=8)
    data = config(tmp_path / "c", max_corrupt_rate=1.0)
    shard = tmp_path / "c" / layout.shard(1, 2)
    with open_stream(data, stop=51) as stream:
        os.truncate(shard, 100)
        with pytest.raises(UserError, match="-00001-of-00002: ends at a record from byte "):
            list(stream)
    shard.unlink()
    with pytest.raises(UserError, match="-00001-of-00002: No such file"):
        open_stream(data, stop=51)


def test_too_many_corrupt_records_stop_the_run(damaged):
    """With a line that says what to do."""
    stream = open_stream(config(damaged[0], max_corrupt_rate=5e-4))
    with pytest.raises(UserError, match=r"corpus: 6 of \d+ slices cannot be read, more than .*ingest.py --verify"):
        for _ in stream:
            pass
    assert next(stream, None) is None  # closed


def test_nothing_readable_stops_at_once(corpus, monkeypatch):
    """Instead of drawing forever."""

    def read(self, i, out=None, reduce=0):
        raise records.CorruptRecord("nothing")

    monkeypatch.setattr(Corpus, "read", read)
    with pytest.raises(UserError, match="16 records in a row"), open_stream(config(corpus[0])) as stream:
        next(stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvas": 64}, r"data.canvas: 64, but .* has slices of 72 pixels; write 72"),
        ({"canvas": 71}, r"data.canvas: 71, but .* has slices of 72 pixels; write 72"),
        ({"canvas": 35, "reduce": 1}, r"data.canvas: 35, but .* has slices of 36 pixels; write 36"),
        ({"reduce": 2}, r"config.data.reduce: found 2; write 0, or 1"),
        ({"corpus": ""}, r"data.corpus: no corpus given; write --config.data.corpus=FOLDER"),
        ({"group_size": 5}, r"data.group_size: 5 does not divide data.global_batch 16"),
        ({"prefetch": 0}, r"data.prefetch: found 0; write 1 or more"),
    ],
)
def test_mistakes_are_told_at_the_start(corpus, changes, message):
    """In one line, before a batch is asked for."""
    with pytest.raises(UserError, match=message):
        open_stream(config(corpus[0], **changes))


def test_a_canvas_must_hold_every_corpus_of_a_mixture(corpus, tmp_path):
    """A wide corpus behind a smaller one; the contracts tell, without a look at the index."""
    write_small_corpus(tmp_path / "wide", series=1, slices=1, shape=(40, 90), shards=1)
    mixture = f"{corpus[0]}:5,{tmp_path / 'wide'}:1"
    with pytest.raises(UserError, match=r"data.canvas: 89, but .* has slices of 90 pixels; write 90"):
        open_stream(config(mixture, canvas=89))
    open_stream(config(mixture, canvas=90)).close()


def test_no_canvas_means_what_the_corpora_need(corpus, tmp_path):
    """Whole multiples of 32 pixels around the largest slice of all of them; what lies inside does not change."""
    write_small_corpus(tmp_path / "wide", series=1, slices=1, shape=(40, 97), shards=1)
    for folder, side in ((corpus[0], 96), (f"{corpus[0]}:5,{tmp_path / 'wide'}:1", 128), (tmp_path / "wide", 128)):
        with open_stream(config(folder, canvas=0), stop=1) as stream:
            assert next(stream)["slices"].shape == (BATCH, side, side)
    with open_stream(config(corpus[0], canvas=0), stop=3) as found, open_stream(config(corpus[0]), stop=3) as given:
        for a, b in zip(found, given, strict=True):
            np.testing.assert_array_equal(a["slices"][:, :80, :80], b["slices"])
            assert not a["slices"][:, 80:].any() and not a["slices"][:, :, 80:].any()
            assert all((a[name] == b[name]).all() for name in a if name != "slices")


def test_without_a_corpus_the_canvas_holds_any_stored_slice():
    """Also one read at half its size."""
    assert config("", canvas=0).side == slicing.MAX_SIDE == 2 * config("", canvas=0, reduce=1).side
    assert config("", canvas=80).side == 80


def test_the_codec_of_the_records_changes_nothing(expected, tmp_path):
    """Row by row."""
    write_small_corpus(tmp_path / "zstd", series=8, codec="zstd")
    assert rows_of(open_stream(config(tmp_path / "zstd"), stop=51)) == expected


def test_slices_of_half_the_size_are_drawn_as_whole_ones(tmp_path):
    """Same slices, same boxes in millimeters of tissue, same masks; the sides of an odd slice are rounded up."""
    slices = write_small_corpus(tmp_path / "c", series=8, shape=(61, 47))
    with (
        open_stream(config(tmp_path / "c"), stop=5) as whole,
        open_stream(config(tmp_path / "c", reduce=1, canvas=0), stop=5) as half,
    ):
        for step, (full, found) in enumerate(zip(whole, half, strict=True)):
            assert found["slices"].shape == (BATCH, 64, 64)
            for name in ("flips", "masks", "is_ct"):
                np.testing.assert_array_equal(found[name], full[name])
            np.testing.assert_array_equal(found["extent"], (full["extent"] + 1) // 2)
            assert whole.records_of_step(step) == half.records_of_step(step)
            for row, where in enumerate(half.records_of_step(step)):
                stored, (height, width) = slices[int(where.split(",")[0].removeprefix("record "))], found["extent"][row]
                codestream = imagecodecs.htj2k_encode(stored.view(np.uint16) ^ 0x8000, reversible=True)
                expected = np.zeros((64, 64), np.int16)
                expected[:height, :width] = imagecodecs.htj2k_decode(codestream, skipres=1).astype(np.int32) - 32768
                np.testing.assert_array_equal(found["slices"][row], expected)
            for name in ("global_boxes", "local_boxes"):
                ends = np.tile(found["extent"], 2)[:, None]
                np.testing.assert_array_equal(found[name], loader.reduced(full[name], full["extent"], 1))
                assert found[name].dtype == np.float32 and (found[name] >= 0).all() and (found[name] <= ends).all()


@pytest.mark.parametrize("shape", [(64, 64), (61, 47), (62, 55)])
def test_a_box_covers_the_same_tissue_in_a_slice_of_half_the_size(shape):
    """On a slope, PIL cuts the same picture out of both, away from the border; half a pixel beside it would be 20."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    whole = (40 * y + 25 * x).astype(np.int16)
    half = records.decode(records.encode(whole), reduce=1)
    rng, extent = np.random.default_rng(0), np.array([shape], np.int32)
    start = rng.uniform(0, 20, (1, 30, 2))
    boxes = np.concatenate([start, start + rng.uniform(18, 27, (1, 30, 2))], -1).astype(np.float32)
    for box, small in zip(boxes[0], loader.reduced(boxes, extent, 1)[0], strict=True):
        cut = [
            np.asarray(
                Image.fromarray(image.astype(np.float32)).resize(
                    (12, 12), Image.Resampling.BICUBIC, (float(b[1]), float(b[0]), float(b[3]), float(b[2]))
                )
            )[4:8, 4:8]
            for image, b in ((whole, box), (half, small))
        ]
        np.testing.assert_allclose(cut[0], cut[1], atol=1.5)
    everything = np.tile(np.array([0, 0, *shape], np.float32), (1, 1, 1))
    found = loader.reduced(everything, extent, 1)[0, 0]
    assert (found[:2] == 0.25).all() and (np.abs(found[2:] - half.shape) <= 0.25).all()


def test_slices_that_cannot_be_halved_are_told(corpus, tmp_path):
    """Before a batch is asked for."""
    write_small_corpus(tmp_path / "zstd", series=2, codec="zstd")
    for folder in (tmp_path / "zstd", f"{corpus[0]},{tmp_path / 'zstd'}"):
        with pytest.raises(UserError, match=r"config.data.reduce: found 1, but .*zstd has .* --codec=htj2k$"):
            open_stream(config(folder, reduce=1))


def test_filters_and_splits_reach_the_corpus(corpus):
    """No other slice is drawn."""
    with open_stream(config(corpus[0], where="modality=CT"), stop=4) as stream:
        assert all(batch["is_ct"].all() for batch in stream)
    patients = set()
    with open_stream(config(corpus[0], held_out=0.5, max_slices_per_series=2), stop=4) as stream:
        for step, _ in enumerate(stream):
            patients |= {where.split(",")[1] for where in stream.records_of_step(step)}
    assert 0 < len(patients) < 8


def test_closing_ends_the_threads(corpus):
    """At once."""
    before = set(threading.enumerate())
    stream = open_stream(config(corpus[0], num_threads=3))
    next(stream)
    stream.close()
    stream.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_that_forgets_to_close_ends_quietly(corpus, tmp_path, workers):
    """Exit code 0 and nothing on stderr, where Python would name shared memory that was left behind."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.insert(0, {str(pathlib.Path(__file__).parents[3])!r})
            from tests.data.crops import test_batches as t

            if __name__ == "__main__":
                stream = t.open_stream(t.config({str(corpus[0])!r}, num_workers={workers}))
                batches = [next(stream) for _ in range(3)]
                print(len(batches))
            """
        )
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.soak
def test_memory_stays_flat_for_ten_minutes(corpus):
    """Peak resident memory of the last nine minutes within 5 % of that of the first."""
    start, first = time.monotonic(), None
    with open_stream(config(corpus[0])) as stream:
        while time.monotonic() < start + 600:
            next(stream)
            if first is None and time.monotonic() > start + 60:
                gc.collect()
                first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1.05 * first
