"""Other people's models beside ours: loaded when it is their turn, and described in the result."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from curia2_jax.curiabench.adapters.adapter import Adapter
from curia2_jax.curiabench.adapters.load import FLAG, load
from curia2_jax.curiabench.aggregate import PRESETS, Choice, parse
from curia2_jax.curiabench.protocol import KNOWN
from curia2_jax.errors import UserError


class Waiting(NamedTuple):
    """A model that was loaded once, so that its faults are known, and is not in memory. `takes`: as of `Adapter`."""

    name: str
    takes: str
    fingerprint: str
    preprocessing: str
    load: Callable[[], Adapter]


class Others(NamedTuple):
    """Models to stand beside the trained one, each a row; how tokens are pooled, and where features are kept (None:
    nowhere), for the trained one as well."""

    models: tuple[Waiting, ...] = ()
    choice: Choice = PRESETS["curia-2"]
    cache: Path | None = None

    def described(self) -> dict[str, dict[str, str]]:
        """For results.json: what each model saw."""
        return {one.name: {"preprocessing": one.preprocessing, "sha256": one.fingerprint} for one in self.models}

    def of_slices(self, why: str) -> None:
        """Raises UserError if a model takes whole volumes, where tokens of single slices are asked for."""
        for one in self.models:
            if one.takes == "volume":
                raise UserError(
                    f"{FLAG}: {one.name} takes whole volumes, and {why} asks for tokens of slices; leave it out"
                )


def load_all(words: Sequence[str], device: str, trust_remote_code: bool, pooling: str, cache: Path | None) -> Others:
    """`words` as of `load.WORDS`, `pooling` as of `aggregate.parse`.

    Raises:
      UserError: a word is no model, two models would have one name, or there is no such pooling.
    """
    choice = parse(pooling)
    models = [_waiting(word, device, trust_remote_code) for word in words]
    names = [one.name for one in models]
    for word, name in zip(words, names, strict=True):
        if name in KNOWN or names.count(name) > 1:
            raise UserError(f"{FLAG}: found {word}, and another row is called {name}; give its folder another name")
    return Others(tuple(models), choice, cache)


def _waiting(word: str, device: str, trust_remote_code: bool) -> Waiting:
    one = load(word, device, trust_remote_code)
    return Waiting(
        one.name, one.takes, one.fingerprint, one.preprocessing, lambda: load(word, device, trust_remote_code)
    )
