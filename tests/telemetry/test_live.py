"""The line of a run on a terminal, by a real pseudo-terminal, and where there is none."""

import contextlib
import io
import os
import pty
import termios

import pytest

from curia2_jax.telemetry.live import Live
from curia2_jax.telemetry.progress import Progress

FIGURES = {"images_per_s": 22.06, "data_wait": 0.02, "eta_s": 420.0}


def on_terminal(columns: int, work) -> list[str]:
    """What `work(stream)` leaves on a terminal of so many columns: its lines, each as it was last drawn."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST  # line feeds as they are written
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w") as stream:
        work(stream)
    written = b""
    with contextlib.suppress(OSError):  # that there is no more
        while more := os.read(ours, 1 << 16):
            written += more
    os.close(ours)
    return [line.rpartition("\r\x1b[2K")[2] for line in written.decode().split("\n")]


def test_a_terminal_has_one_line_that_is_rewritten():
    def work(stream):
        with Live(Progress(300, 32, 0), stream) as live:
            live.row({"loss": 8.0, "nats/dino": 0.0, "probe/height_knn": 0.25}, FIGURES, "")
            live.progress.step = 150
            live.row({"loss": 7.38054, "nats/dino": 0.384}, FIGURES, "")

    lines = on_terminal(200, work)
    assert lines == [
        "[##########..........]  50%  step 150/300  22.1 img/s  wait 2%  loss 7.3805  nats 0.38  height 0.25  "
        "ETA 7 min 00 s",
        "",
    ]


def test_a_narrow_terminal_cuts_and_what_is_wrong_is_said_once_above():
    def work(stream):
        with Live(Progress(300, 32, 0), stream) as live:
            for step in (10, 20):
                live.progress.step = step
                live.row({"loss": 8.0}, FIGURES, "spike: the loss jumped")
            live.step(21)  # at once: too soon to be drawn

    assert on_terminal(40, work) == ["spike: the loss jumped", "[#...................]   7%  step 20/30", ""]


def test_steps_between_rows_move_the_bar(monkeypatch):
    monkeypatch.setattr("curia2_jax.telemetry.live.PATIENCE", -1.0)

    def work(stream):
        with Live(Progress(300, 32, 100), stream) as live:
            live.step(200)

    assert on_terminal(80, work) == ["[#############.......]  67%  step 200/300", ""]


@pytest.mark.parametrize("wrong", ["", "spike: the loss jumped"])
def test_elsewhere_lines_follow_each_other(wrong):
    stream = io.StringIO()
    with Live(Progress(300, 32, 10), stream) as live:
        live.step(11)
        live.row({"loss": 8.0, "probe/height_knn": 0.5}, FIGURES, wrong)
    (line, rest) = stream.getvalue().split("\n")
    assert line.startswith("step 10/300  loss 8.0000  height 0.50  22.1 img/s  data wait 2%  ETA 7 min 00 s")
    assert line.endswith(wrong or "checkpoint age none") and rest == "" and "\x1b" not in line
