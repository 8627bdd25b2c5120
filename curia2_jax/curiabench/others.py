"""Other people's models beside ours: loaded by their words, encoded once, and described in the result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import encoded
from curia2_jax.curiabench.adapters.adapter import Adapter
from curia2_jax.curiabench.adapters.load import FLAG, load
from curia2_jax.curiabench.aggregate import PRESETS, Choice, parse
from curia2_jax.curiabench.protocol import KNOWN
from curia2_jax.curiabench.splits import Split
from curia2_jax.errors import UserError


class Others(NamedTuple):
    """Models to stand beside the trained one, each a row. `cache`: None = none."""

    adapters: tuple[Adapter, ...] = ()
    choice: Choice = PRESETS["curia-2"]
    cache: Path | None = None
    device: str = "cpu"

    def rows(self, split: Split, say: Callable[[str], None]) -> dict[str, list[np.ndarray]]:
        """{name: [(n, D) float32]} of a split, as `features.Features` has them."""
        rows = {}
        for adapter in self.adapters:
            (found,), made = encoded.encode(split, adapter, [self.choice], self.device, self.cache)
            say(f"{adapter.name}: {made} of {len(found)} samples encoded, the rest is of the cache")
            rows[adapter.name] = [found]
        return rows

    def described(self) -> dict[str, dict[str, str | int]]:
        """For results.json: what each model saw and how its tokens were pooled."""
        pooled = {f"pooling_{name}": value for name, value in self.choice._asdict().items()}
        return {
            one.name: {"preprocessing": one.preprocessing, "sha256": one.fingerprint, **pooled} for one in self.adapters
        }


def load_all(words: Sequence[str], device: str, trust_remote_code: bool, pooling: str, cache: Path | None) -> Others:
    """`words` as of `load.WORDS`, `pooling` as of `aggregate.parse`.

    Raises:
      UserError: a word is no model, two models would have one name, or there is no such pooling.
    """
    choice = parse(pooling)
    adapters = [load(word, device, trust_remote_code) for word in words]
    names = [one.name for one in adapters]
    for word, name in zip(words, names, strict=True):
        if name in KNOWN or names.count(name) > 1:
            raise UserError(f"{FLAG}: found {word}, and another row is called {name}; give its folder another name")
    return Others(tuple(adapters), choice, cache, device)
