"""From which norm on a gradient is a spike: so many medians of what came before, the same in every life of a run."""

import math
import statistics
from collections.abc import Mapping

KNOWN = 100  # steps that the median is of
FEWEST = 20  # steps before which nothing is a spike
LAG = 3  # steps: when a batch is sent, the norms of the last two may not have been read


class Norms:
    """The gradient norms of the newest steps."""

    def __init__(self, medians: float, saved: Mapping[str, float]):
        """`medians` 0: nothing is a spike. `saved`: what a checkpoint has of `known`."""
        self._medians, self._of = medians, {int(step): norm for step, norm in saved.items()}

    def add(self, step: int, norm: float) -> None:
        """Notes the norm of a step that was applied, and forgets those that no later bound is made of."""
        self._of = {at: known for at, known in self._of.items() if at > step - KNOWN - LAG} | {step: norm}

    def largest(self, step: int) -> float:
        """The largest norm that the gradient of `step` may have. Norms that are newer than LAG steps do not count, read
        or not, so that a run which was interrupted comes to the same number."""
        norms = [norm for at, norm in self._of.items() if step - LAG - KNOWN < at <= step - LAG]
        if not self._medians or len(norms) < FEWEST:
            return math.inf
        return self._medians * statistics.median(norms)

    def known(self) -> dict[str, float]:
        """For `meta` of a checkpoint: {"step": norm}, empty where no bound is asked for."""
        return {str(step): norm for step, norm in self._of.items()} if self._medians else {}
