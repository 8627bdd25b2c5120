"""The model that a word of the command line means. Nothing is downloaded, and no code of a model is run by default."""

import importlib.util
import json
from pathlib import Path

from curia2_jax.curiabench import model as models
from curia2_jax.curiabench.adapters import folders, monai_networks, timm_models
from curia2_jax.curiabench.adapters.adapter import Adapter, fingerprint
from curia2_jax.errors import UserError

WORDS = (
    "a folder of launch/convert.py, of DINOv2 or of DINOv3; curia:DIR, curia-tensor:DIR, curia-2:DIR, rad-dino:DIR, "
    "timm:DIR, monai:DIR, random:DIR@SEED, pixels-linear:DIR, or FILE.py:NAME with --trust-remote-code"
)
FLAG = "--against"


def load(word: str, device: str, trust_remote_code: bool) -> Adapter:
    """The adapter that `WORDS` describes.

    Raises:
      UserError: no such model, a damaged one, or code that is not trusted.
    """
    path, _, name = word.rpartition(":")
    if path.endswith(".py"):
        return _of_file(Path(path), name, device, trust_remote_code)
    kind, _, place = word.partition(":")
    if not place:
        return _folder(Path(word), device, trust_remote_code)
    if kind in ("random", "pixels-linear"):
        place, _, seed = place.partition("@")
        if seed and not seed.isdigit():
            raise UserError(f"{FLAG}: found {word}; write a whole number after @")
        folder = _existing(place, word)
        weights = folders.random(folder, int(seed or 0), 1.0 if kind == "random" else models.LINEAR)
        adapter = _folder(folder, device, trust_remote_code, weights)
        return adapter._replace(name=f"{kind}:{folder.name}@{int(seed or 0)}")
    folder = _existing(place, word)
    if kind in folders.CURIA:
        return folders.curia(kind, folder, device)
    if kind == "rad-dino":
        return folders.natural(folder, device, rad_dino=True)
    if kind in ("timm", "monai"):
        return (timm_models if kind == "timm" else monai_networks).load(folder, device)
    raise UserError(f"{FLAG}: found {word}; write {WORDS}")


def _existing(place: str, word: str) -> Path:
    if not Path(place).is_dir():
        raise UserError(f"{FLAG}: found {word}, and {place} is no folder; write {WORDS}")
    return Path(place)


def _folder(folder: Path, device: str, trust_remote_code: bool, other: folders.Other | None = None) -> Adapter:
    """Ours where the processor is the one that we export; code of others is not looked at."""
    _existing(str(folder), str(folder))
    if (folder / models.PROCESSOR.name).is_file():
        return folders.ours(folder, device, trust_remote_code, other)
    path = folder / models.SETTINGS
    if path.is_file() and "auto_map" in json.loads(path.read_text()):
        raise UserError(
            f"{FLAG}: {folder} has an image processor of its own, which is not run; write curia:{folder}, "
            f"curia-2:{folder}, or FILE.py:NAME with --trust-remote-code"
        )
    return folders.natural(folder, device, other=other)


def _of_file(path: Path, name: str, device: str, trust_remote_code: bool) -> Adapter:
    """The function `name` of a Python file, (device) -> Adapter."""
    if not trust_remote_code:
        raise UserError(f"{FLAG}: {path} is code; write --trust-remote-code to run it")
    if not path.is_file():
        raise UserError(f"{FLAG}: found {path}, which is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(made := getattr(module, name, None)):
        raise UserError(f"{FLAG}: {path} has no function {name}; write one that takes a device and returns an Adapter")
    adapter = made(device)
    # Of the code too: what it does to a volume is part of what the cache must know.
    return adapter._replace(name=f"{path.name}:{name}", fingerprint=fingerprint([path], name, adapter.fingerprint))
