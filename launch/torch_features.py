"""python launch/torch_features.py HF_DIR IMAGES.npz TOKENS.npz: what stock transformers makes of an exported model.

`convert.py --verify` runs it in a process of its own, because PyTorch and JAX in one process fight over threads and
memory. IMAGES.npz holds arrays (B, C, H, W) float32; TOKENS.npz gets last_hidden_state under the same names, and under
`unloaded` the names of the weights that PyTorch missed, did not expect, or found in another shape.
"""

import sys

import numpy as np
import torch
import transformers


def main(folder: str, images: str, tokens: str) -> None:
    """The three files of the command line, in its order."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    unloaded = [str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    with torch.inference_mode(), np.load(images) as arrays:
        found = {name: model(torch.from_numpy(arrays[name])).last_hidden_state.numpy() for name in arrays}
    np.savez(tokens, unloaded=np.array(unloaded, dtype=str), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
