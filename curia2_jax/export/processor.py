"""What an exported model needs to be told about its input: the image processor, the whole contract, a model card."""

import hashlib
import importlib.metadata
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import curia2_jax

FORMAT = "curia2_jax export 1"
CONTRACT = "preprocessing.json"
_SOURCE = pathlib.Path(curia2_jax.__file__).with_name("curia_image_processor.py")  # shipped, not imported


def contract(config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of preprocessing.json: every step between a scan and the model, and where the model comes from.

    Args:
      config: of the run (its config.json).
      meta: of the checkpoint: `step`, `corpus`, the hash of the corpus contract, and `teacher_digest`.
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
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
            "training_config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "corpus_contract_sha256": meta.get("corpus"),
            "step": meta["step"],
            "weights": "teacher (exponential moving average), float32",
            # Of the checkpoint's own fingerprints; release 0.1.0 took none.
            "teacher_digest": meta.get("teacher_digest"),
            "code": f"curia2_jax {importlib.metadata.version('curia2-jax')}",
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


def write_model_card(directory: pathlib.Path, preprocessing: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Writes README.md: facts about the folder, taken from its own files.

    Args:
      model: the content of config.json.
    """
    source, side = preprocessing["source"], preprocessing["resize"]["size"]
    patches = (side // model["patch_size"]) ** 2
    registers = model.get("num_register_tokens", 0)
    between = f"registers 1 to {registers}, " if registers else ""
    tokens = f"class token 0, {between}{patches} patches from {1 + registers} on"
    blocks, width = model["num_hidden_layers"], model["hidden_size"]
    text = f"""# {model["architectures"][0]}: {blocks} blocks of width {width}, {side} px

A vision transformer for CT and MR slices, pre-trained without labels by curia2_jax and stored as a stock model of
transformers. It has not been validated for any clinical use.

| | |
|---|---|
| input | {model["num_channels"]} x {side} x {side}, patches of {model["patch_size"]} |
| output | `last_hidden_state`: {tokens}; after the final norm |
| feed-forward | {"SwiGLU" if model["use_swiglu_ffn"] else "GELU"} |
| weights | {source["weights"]}, step {source["step"]} |
| teacher (fingerprints of its checkpoint) | {source["teacher_digest"]} |
| training config (SHA-256) | {source["training_config_sha256"]} |
| corpus contract (SHA-256) | {source["corpus_contract_sha256"]} |
| code | {source["code"]} |

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("THIS_FOLDER", trust_remote_code=True)
model = AutoModel.from_pretrained("THIS_FOLDER")
tokens = model(**processor(slice_or_volume, return_tensors="pt")).last_hidden_state
```

`slice_or_volume` is (H, W), or (S, H, W) with slices first: CT in Hounsfield units without a window, MR in scanner
units (pass `clip_below_air=False` with MR that has values under -1000). Rows and columns run posterior and left in
axial, inferior and left in coronal, inferior and posterior in sagittal slices. `{CONTRACT}` says everything else.
"""
    (directory / "README.md").write_text(text)


def is_export(directory: pathlib.Path) -> bool:
    """Whether a folder is an earlier export of ours."""
    try:
        return json.loads((directory / CONTRACT).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False
