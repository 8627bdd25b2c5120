"""The records of a TensorBoard file, against the messages and the writer of tensorboardX."""

import subprocess
import sys
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from curia2_jax.telemetry import events

INF = float("inf")


@pytest.mark.parametrize("step", [0, 1, 127, 128, 16_384, 2**40])
@pytest.mark.parametrize(
    "values",
    [{}, {"loss": 0.0}, {"a" * 200: -1.5, "größe/π": 1e-42, "lr": 3e-4}, {"x": INF, "y": -INF, "z": 1e39, "w": -1e39}],
)
def test_every_byte_is_that_of_tensorboardx(tmp_path, monkeypatch, step, values):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.25)
    figures = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]  # 1e39 becomes infinite
    expected = [
        Event(wall_time=time.time(), file_version="brain.Event:2"),
        Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)),
        Event(wall_time=time.time(), step=step, summary=Summary(value=figures)),
    ]
    found = [events.opening(), events.void(step), events.scalars(step, values)]
    assert [Event.FromString(one[12:-4]) for one in found] == expected
    writer = RecordWriter(str(tmp_path / "theirs"))
    for one in found:
        writer.write(one[12:-4])
    writer.close()
    assert (tmp_path / "theirs").read_bytes() == b"".join(found)  # lengths and checksums


def test_no_process_that_writes_figures_imports_pytorch():
    code = "import sys; import curia2_jax.telemetry.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
