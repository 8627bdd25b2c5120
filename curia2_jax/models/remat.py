"""What a block keeps from its forward pass for the backward one, and does not compute a second time."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from curia2_jax.errors import UserError

NAMES = ("qkv", "attn_out", "ffn_hidden")  # as blocks call these values with `checkpoint_name`
POLICIES = ("nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable")


def policy(remat: str) -> Callable[..., Any]:
    """For `jax.checkpoint`, of "none" or of POLICIES of JAX and NAMES joined by commas.

    Raises:
      UserError: another word is among them.
    """
    words = [word.strip() for word in remat.split(",")]
    if words != ["none"] and not set(words) <= {*POLICIES, *NAMES}:
        raise UserError(f"remat={remat!r}: write 'none', one of {', '.join(POLICIES)}, or names of {', '.join(NAMES)}")
    names = [word for word in words if word not in POLICIES]
    policies = [getattr(jax.checkpoint_policies, word) for word in words if word in POLICIES]
    policies += [jax.checkpoint_policies.save_only_these_names(*names), *([_is_cudnn] if "attn_out" in names else [])]
    return functools.reduce(jax.checkpoint_policies.save_from_both_policies, policies)


def _is_cudnn(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether it gives an output and the statistics of its softmax, without which the gradient asks for it again."""
    return primitive.name == "dot_product_attention_fwd_wrapper"
