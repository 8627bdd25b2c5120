"""python launch/torch_features.py HF_DIR INPUTS.npz FOUND.npz: what stock transformers makes of an exported model.

`convert.py --verify` runs it in a process of its own, because PyTorch and JAX in one process fight over threads and
memory. INPUTS.npz holds, for each image size S in pixels, `images/S` (B, C, S, S) float32 and `mask/S` (B, N) bool, and
`slice/CT` and `slice/MR` (H, W). FOUND.npz gets what `features` gives for each probe, `pixels/CT` and `pixels/MR` from
the folder's image processor, and under `unloaded` the names of the weights that PyTorch missed, did not expect, or
found in another shape.
"""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Mapping

import numpy as np
import torch
import transformers

QUIET = 2.0**-10  # times the embedded tokens: small enough for the eps of a LayerNorm to matter, and exact


def stages(model: torch.nn.Module, images: np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
    """Tokens (B, T, D) before the first block, behind each block, and behind the final norm."""
    found: list[np.ndarray] = []
    kinds = ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer")
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]

    def first(output: object) -> torch.Tensor:
        return output if isinstance(output, torch.Tensor) else output[0]  # type: ignore[index]

    hooks = [block.register_forward_hook(lambda *a: found.append(first(a[-1]).numpy().copy())) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0].numpy().copy())))
    try:
        with torch.inference_mode():
            masked = {} if mask is None else {"bool_masked_pos": torch.from_numpy(mask)}
            tokens = model(torch.from_numpy(images), **masked).last_hidden_state.numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, tokens]


def change(model: torch.nn.Module, probe: str) -> None:
    """Makes of the model, in place, what `parity.changed` makes of our parameters. The probes come in their order."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if probe == "unit" and name.endswith("lambda1"):
                parameter.fill_(1.0)
            if probe == "quiet" and name.startswith("embeddings."):
                parameter.mul_(QUIET)


def features(model: torch.nn.Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`PROBE/S/STAGE` -> tokens, for every size S, with mask in the probe "masked". The model is changed in place."""
    sizes = [name.partition("/")[2] for name in inputs if name.startswith("images/")]
    found: dict[str, np.ndarray] = {}
    for probe in ("trained", "masked", "unit", "quiet"):
        change(model, probe)
        for size in sizes:
            mask = inputs[f"mask/{size}"] if probe == "masked" else None
            for i, tokens in enumerate(stages(model, inputs[f"images/{size}"], mask)):
                found[f"{probe}/{size}/{i}"] = tokens
    return found


def pixels(folder: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The image processor of `folder` on the slices."""
    spec = importlib.util.spec_from_file_location("processor_of_folder", folder / "curia_image_processor.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(folder)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    process = module.CuriaImageProcessor(**json.loads((folder / "preprocessor_config.json").read_text()))
    return {
        f"pixels/{kind}": process(inputs[f"slice/{kind}"], clip_below_air=kind == "CT")["pixel_values"].numpy()
        for kind in ("CT", "MR")
    }


def main(folder: str, inputs: str, found: str) -> None:
    """The three files of the command line, in its order."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    unloaded = [str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    with np.load(inputs) as arrays:
        given = dict(arrays)
    out = features(model.eval(), given) | pixels(pathlib.Path(folder), given)
    np.savez(found, allow_pickle=False, unloaded=np.array(unloaded, dtype=str), **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
