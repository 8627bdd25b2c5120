"""What a folder of a `DINOv3ViTModel` of transformers calls things: DINOv3's sizes with rotary positions.

Names and keys: modeling_dinov3_vit.py and configuration_dinov3_vit.py of transformers, as they are on disk, where
releases 4 and 5 agree.
"""

from collections.abc import Mapping
from typing import Any

from curia2_jax.errors import UserError
from curia2_jax.models import rope
from curia2_jax.models.vit import ViTConfig

KIND = "dinov3_vit"

# What every model of ours has; a folder that says something else is another kind of model.
_FIXED = {
    "layer_norm_eps": 1e-5,
    "rope_theta": rope.THETA,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
}


def model_config(model: ViTConfig) -> dict[str, Any]:
    """What goes into config.json of a model with rotary positions."""
    return _FIXED | {
        "architectures": ["DINOv3ViTModel"],
        "model_type": KIND,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_register_tokens": model.registers,
        "use_gated_mlp": model.ffn == "swiglu",
        "hidden_act": "silu" if model.ffn == "swiglu" else "gelu",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": model.in_channels,
        "layerscale_value": model.layerscale,
        "drop_path_rate": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pos_embed_rescale": None,  # augments positions in training there; not here
        "dtype": "float32",
        "torch_dtype": "float32",  # its name before release 5 of transformers
    }


def model_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of `ViTConfig` that describe the model of a config.json.

    Raises:
      UserError: a variant that the backbone here does not have.
    """
    got = {"image_size": 224, "num_channels": 3, "num_register_tokens": 0, "use_gated_mlp": False, **config}
    got = {"layerscale_value": 1.0, **_FIXED, **got}
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size", "num_channels")
    for key in (*sizes, "intermediate_size", "num_register_tokens"):
        if not isinstance(got.get(key), int):
            raise UserError(f"{where}: {key} is {got.get(key)!r}; only one whole number (a square) can be read")
    section: dict[str, Any] = dict(
        zip(("width", "depth", "heads", "patch_size", "image_size", "in_channels"), map(got.get, sizes), strict=True)
    )
    section |= {"ffn": "swiglu" if got["use_gated_mlp"] else "mlp", "registers": got["num_register_tokens"]}
    fixed = _FIXED | {"hidden_act": "silu" if got["use_gated_mlp"] else "gelu"}
    section |= {"layerscale": float(got["layerscale_value"]), "positions": "rope"}
    # S, B and L of the release; the gated nets of its S+, H+ and 7B are wider than two thirds of 4 D.
    fixed["intermediate_size"] = ViTConfig(**section).hidden
    for key, value in fixed.items():
        if got.get(key, value) != value:
            raise UserError(f"{where}: {key} is {got[key]!r}; only models with {value!r} can be read")
    return section
