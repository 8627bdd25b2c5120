"""Whether the network still tells images apart, by a figure that every step measures anyway."""

SPREAD = 1e-3  # of the class tokens (feature_std of training/objective.py): below it all images are one
TIMES = 3  # steps that are logged, one after another


class Collapse:
    """Looks at every step that is logged. Not before the warm-up is over: a fresh network with a LayerScale of 1e-5
    hands on its class token, which is the same for all images."""

    def __init__(self, warmup_steps: int):
        self._warmup_steps, self._rows = warmup_steps, 0

    def begins(self, step: int, spread: float) -> bool:
        """Whether this is the step at which it is certain, once for each collapse."""
        self._rows = self._rows + 1 if step > self._warmup_steps and spread < SPREAD else 0
        return self._rows == TIMES
