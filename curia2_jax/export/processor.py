"""What an exported model needs to be told about its input: the image processor and the whole contract."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import curia2_jax
from curia2_jax.export import origin

FORMAT = "curia2_jax export 1"
CONTRACT = "preprocessing.json"
_SOURCE = pathlib.Path(curia2_jax.__file__).with_name("curia_image_processor.py")  # shipped, not imported


def contract(config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of preprocessing.json: every step between a scan and the model, and where the model comes from.

    Args:
      config: of the run (its config.json).
      meta: of the checkpoint: `step`, `corpus`, the hash of the corpus contract, and `teacher_digest`.
    """
    low, high = config["augment"]["window"] or (-1000, None)
    return {
        "format": FORMAT,
        "steps": ["orient", "resize", "clip", "z_score"],
        "orientation": {
            "meaning": "where the row index and the column index grow towards",
            "axial": "PL",
            "coronal": "IL",
            "sagittal": "IP",
        },
        "units": {"CT": "Hounsfield units, no window", "MR": "scanner units, any scale and offset"},
        "channels": config["model"]["in_channels"],
        "resize": {
            "size": config["crops"]["global_size"],
            "box": "the whole slice",
            "keep_aspect_ratio": False,
            "filter": "bicubic, a = -0.5, antialiased (PIL BICUBIC of mode F; torch antialias=True)",
        },
        "clip": {"CT": {"min": low, "max": high}, "MR": None},
        "z_score": {
            "statistics": "mean and standard deviation (over N) of each slice as it came: clipped, not yet resized",
            "eps": 1e-6,
            "in_training": f"statistics of the {config['augment']['normalize']}",
        },
        "dtype": "float32",
        "source": {
            "training_config_sha256": hashlib.sha256(origin.training_config(config).encode()).hexdigest(),
            "corpus_contract_sha256": meta.get("corpus"),
            "step": meta["step"],
            "weights": "teacher (exponential moving average), float32",
            # Of the checkpoint's own fingerprints; release 0.1.0 took none.
            "teacher_digest": meta.get("teacher_digest"),
            "code": origin.code(),
        },
    }


def write(directory: pathlib.Path, preprocessing: Mapping[str, Any]) -> None:
    """Writes preprocessing.json, preprocessor_config.json and curia_image_processor.py into an existing folder."""
    (directory / CONTRACT).write_text(json.dumps(preprocessing, indent=2) + "\n")
    bounds = preprocessing["clip"]["CT"]
    settings = {
        "image_processor_type": "CuriaImageProcessor",
        "auto_map": {"AutoImageProcessor": f"{_SOURCE.stem}.CuriaImageProcessor"},
        "crop_size": preprocessing["resize"]["size"],
        "clip_below_air": True,
        "window": None if bounds["max"] is None else [bounds["min"], bounds["max"]],
        "eps": preprocessing["z_score"]["eps"],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copyfile(_SOURCE, directory / _SOURCE.name)


def is_export(directory: pathlib.Path) -> bool:
    """Whether a folder is an earlier export of ours."""
    try:
        return json.loads((directory / CONTRACT).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False
