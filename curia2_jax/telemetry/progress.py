"""The one line that says how a run is doing."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

# The first that there is stands in the line.
PROBED = ("probe/structures_knn", "probe/height_knn", "probe/modality_knn", "probe/plane_knn")


def duration(seconds: float) -> str:
    """`3 d 04 h`, `2 h 05 min`, `4 min 10 s` or `9 s`."""
    s = int(seconds)
    if s >= 86_400:
        return f"{s // 86_400} d {s % 86_400 // 3600:02d} h"
    if s >= 3600:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 60} min {s % 60:02d} s" if s >= 60 else f"{s} s"


@dataclasses.dataclass
class Progress:
    """Wall-clock of a run since it was last asked: rate, waiting, time to go."""

    total_steps: int
    images_per_step: int
    step: int
    since: float = dataclasses.field(default_factory=time.monotonic)
    waited: float = 0.0  # seconds spent waiting for data since then
    saved_at: float | None = None  # monotonic time of the newest checkpoint

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def saved(self) -> None:
        self.saved_at = time.monotonic()

    def interval(self, step: int) -> dict[str, float]:
        """Figures since the last call: `images_per_s`, `data_wait` (share of the time), `eta_s`."""
        now = time.monotonic()
        elapsed, steps = max(now - self.since, 1e-9), step - self.step
        figures = {
            "images_per_s": steps * self.images_per_step / elapsed,
            "data_wait": min(self.waited / elapsed, 1.0),
            "eta_s": (self.total_steps - step) * elapsed / max(steps, 1),
        }
        self.since, self.step, self.waited = now, step, 0.0
        return figures

    def line(self, scalars: Mapping[str, float], figures: Mapping[str, float]) -> str:
        """One row as a line of its own, for whatever is no terminal."""
        age = "none" if self.saved_at is None else duration(time.monotonic() - self.saved_at)
        return (
            f"step {self.step:,}/{self.total_steps:,}  loss {scalars['loss']:.4f}{learned(scalars)}  "
            f"{figures['images_per_s']:.1f} img/s  data wait {figures['data_wait']:.0%}  "
            f"ETA {duration(figures['eta_s'])}  checkpoint age {age}"
        )


def learned(scalars: Mapping[str, float]) -> str:
    """What the student knows of the other view, 0 for a whole run meaning uniform answers, and what a probe found."""
    nats = f"  nats {scalars['nats/dino']:.2f}" if "nats/dino" in scalars else ""
    found = next((name for name in PROBED if name in scalars), "")
    return nats + (f"  {found.partition('/')[2].partition('_')[0]} {scalars[found]:.2f}" if found else "")
