"""Where an export comes from, said without places: its training config, and what its weight files say of themselves."""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

TRAINING_CONFIG = "training_config.json"
_PLACES = ("data.corpus", "init_from")  # folders of the site, whatever they are called
_PERSONS = ("patient", "study", "series")  # columns that a selection can name one by


def code() -> str:
    """Name and version of this package."""
    return f"curia2_jax {importlib.metadata.version('curia2-jax')}"


def training_config(config: Mapping[str, Any]) -> str:
    """training_config.json: every key of a run's config; folders, and selections that can name a person, are blank."""

    def shown(key: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        place = key in _PLACES or "/" in value or "\\" in value
        person = key == "data.where" and any(word in value for word in _PERSONS)
        return "" if place or person else value

    flat = flatten_dict(dict(config), keep_empty_nodes=True, sep=".")
    public = unflatten_dict({key: shown(key, value) for key, value in flat.items()}, sep=".")
    return json.dumps(public, indent=1, sort_keys=True) + "\n"


def metadata(source: Mapping[str, Any]) -> dict[str, str]:
    """What the header of a .safetensors file says: all that is known of `source` of preprocessing.json, as text."""
    return {name: str(value) for name, value in source.items() if value is not None}
