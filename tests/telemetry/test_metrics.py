"""Figures that are made on the host."""

import json
import math
import pathlib
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from curia2_jax.telemetry import board, thinning
from curia2_jax.telemetry.metrics import MetricsWriter, rankme, read


def with_singular_values(values: np.ndarray, n: int, d: int) -> np.ndarray:
    """(n, d) float32 with these singular values in random directions."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (n, d))
    return ((left * values) @ right.T).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_rankme_is_the_exponential_of_an_entropy(shape):
    # k equal values: k. Values 2, 1, 1: p = 1/2, 1/4, 1/4 and exp(1.5 ln 2).
    for values, expected in ((np.ones(7), 7), (np.array([2.0, 1, 1]), 2**1.5), (np.ones(1), 1)):
        assert rankme(with_singular_values(values, *shape)) == pytest.approx(expected, rel=1e-4)
    assert rankme(np.eye(24, dtype=np.float32)) == pytest.approx(24)


def test_rankme_sees_what_is_small():
    """A large common part and a thousandth beside it in 20 directions: from squares in float32 that would be lost."""
    values = np.array([1.0, *[1e-3] * 20])
    p = values / values.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert expected > 1.15
    assert rankme(with_singular_values(values, 64, 32)) == pytest.approx(expected, rel=1e-3)


def test_rankme_of_nothing():
    assert math.isnan(rankme(np.zeros((4, 3), np.float32)))
    assert math.isnan(rankme(np.full((4, 3), np.nan, np.float32)))


GOOD = [json.dumps({"step": step, "loss": step + 0.5}) for step in range(1, 8)]


@pytest.mark.parametrize(
    "bad", [b'{"step": 3, "lo', b"\xff\xfe", b"null", b'{"loss": 1.0}', b'{"step": "x"}', b"[1]", b"\0" * 40]
)
def test_a_damaged_line_loses_itself_only(tmp_path, capsys, bad):
    lines = [line.encode() for line in GOOD]
    lines[2] = bad
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"step": 8, "lo']))  # and a last one cut by a kill
    writer = MetricsWriter(tmp_path, 6, 1)
    writer.write(7, {"loss": 0.5, "rankme": math.nan})
    writer.close()
    rows, left = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 6, 7] and left == 0
    assert rows[-1] == {"step": 7, "loss": 0.5, "rankme": None}
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().count(b"\n") == 7
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "1 damaged lines left out" in said


def test_rows_wait_for_a_disk_that_is_full(tmp_path, monkeypatch):
    """Half of a row gets there, then nothing; later all do, each once."""
    writer = MetricsWriter(tmp_path, 0, 1)
    disk, full = writer._file, [True]

    class Disk:
        def write(self, data: bytes) -> int:
            if not full[0]:
                return disk.write(data)
            if len(data) > 10 and data.startswith(b'{"step": 1'):
                return disk.write(data[:10])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_file", Disk())
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 2.0})
    assert writer.trouble.endswith("metrics.jsonl: 2 rows wait (No space left on device)")
    full[0] = False
    writer.write(3, {"loss": 3.0})
    assert writer.trouble == "" and [row["step"] for row in read(tmp_path / "metrics.jsonl")[0]] == [1, 2, 3]
    monkeypatch.undo()
    writer.close()


def events(path: pathlib.Path) -> list[Event]:
    """The records of a TensorBoard file: length, its CRC, the bytes, their CRC."""
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_tensorboard_has_the_same_rows_and_hears_of_a_new_life(tmp_path):
    writer = MetricsWriter(tmp_path, 2, 1)
    for step in (3, 4):
        writer.write(step, {"loss": step / 2, "rankme": math.nan, "lr": 0.25})
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, start, *rows = events(path)
    assert first.file_version == "brain.Event:2" and (start.step, start.session_log.status) == (3, SessionLog.START)
    values = [(e.step, v.tag, v.simple_value) for e in rows for v in e.summary.value]
    assert values == [(3, "loss", 1.5), (3, "lr", 0.25), (4, "loss", 2.0), (4, "lr", 0.25)]


@pytest.fixture
def short(monkeypatch):
    """Runs of hundreds of rows are long."""
    monkeypatch.setattr(thinning, "FULL", 32)
    monkeypatch.setattr(thinning, "BLOCK", 16)
    monkeypatch.setattr(board, "LIMIT", 15_000)


def written(run: pathlib.Path, last: int, lives: list[tuple[int, int]]) -> list[dict]:
    """Rows of a curve, each fifth step, in lives that each go on from one step and end at another."""
    run.mkdir()
    for start, end in [*lives, (lives[-1][0] if lives else 0, last)]:
        writer = MetricsWriter(run, start, 5)
        for step in range(start + 5, end + 1, 5):
            writer.write(step, {"loss": 10 / step, "lr": step * 1e-3})
        writer.close()
    return read(run / "metrics.jsonl")[0]


def test_a_long_run_keeps_the_shape_of_its_curves(tmp_path, short):
    rows = written(tmp_path / "run", 3_000, [])
    steps = [row["step"] for row in rows]
    assert 2 * 32 <= len(rows) <= 2 * 32 + 16 + 2 * 16 * 4  # of 600: both ends, a block, half an end a doubling
    assert steps == sorted(set(steps)) and steps[:32] == list(range(5, 161, 5))
    assert steps[-32:] == list(range(3_000 - 31 * 5, 3_001, 5))
    # No hole is wider than a few hundredths of the way to the nearer end, so a straight line through it is the curve.
    everywhere = np.arange(5, 3_001, 5)
    found = np.interp(everywhere, steps, [row["loss"] for row in rows])
    np.testing.assert_allclose(found, 10 / everywhere, rtol=2e-3)


@pytest.mark.parametrize(
    "lives", [[(0, 1_333)], [(0, 2_000), (1_900, 2_300), (2_200, 2_800)], [(0, 2_999), (160, 200)]]
)
def test_a_run_that_was_interrupted_keeps_the_same_rows(tmp_path, short, lives):
    assert written(tmp_path / "interrupted", 3_000, lives) == written(tmp_path / "alone", 3_000, [])


def test_a_disk_that_is_full_while_rows_go_keeps_them_all(tmp_path, short, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curia2_jax.telemetry.metrics.files.write_text", lambda path, text: path.write_text(text))
    writer = MetricsWriter(tmp_path, 0, 1)
    monkeypatch.setattr("curia2_jax.telemetry.metrics.files.write_text", full)
    for step in range(1, 201):
        writer.write(step, {"loss": 1.0})
    assert len(read(tmp_path / "metrics.jsonl")[0]) == 200
    monkeypatch.undo()
    writer.close()


def test_tensorboard_is_bounded_and_has_the_rows_that_stay(tmp_path, short):
    rows = written(tmp_path / "run", 3_000, [(0, 2_000)])
    paths = sorted((tmp_path / "run" / "tensorboard").iterdir())
    assert sum(path.stat().st_size for path in paths) <= 15_000 + 16 * 80
    shown = {e.step for path in paths for e in events(path) if e.summary.value}
    assert {row["step"] for row in rows} <= shown and len(shown) < 500
    first, start, *_ = events(paths[0])
    assert first.file_version == "brain.Event:2" and (start.step, start.session_log.status) == (0, SessionLog.START)
