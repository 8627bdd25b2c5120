"""python launch/torch_weights.py IN OUT.safetensors: the tensors of a PyTorch pickle, without running what is in it.

`convert.py` runs it in a process of its own. `weights_only=True` refuses every pickle that would call something.
Dicts inside the dict are joined by dots; what is no tensor is left out. Halves and float32 stay what they are.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import torch


def tensors(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a dict and of the dicts in it."""
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.detach().contiguous().clone()
        elif isinstance(value, Mapping):
            yield from tensors(value, f"{prefix}{name}.")


def main(path: str, out: str) -> int:
    """0, or 2 with one line of error."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever unpickling raises: the file is not ours
        print(f"{type(e).__name__}: {str(e).splitlines()[0][:100] if str(e) else ''}", file=sys.stderr)
        return 2
    if not isinstance(state, Mapping):
        print(f"holds a {type(state).__name__}, no dict of tensors", file=sys.stderr)
        return 2
    safetensors.torch.save_file(dict(tensors(state)), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
