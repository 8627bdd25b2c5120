"""Between a run and PyTorch.

    python launch/convert.py --checkpoint RUN[@STEP] --output HF_DIR [--verify] [--license ID] [--report DIR]
                             [--with-heads] [--with-optimizer]
    python launch/convert.py --from-pretrained WEIGHTS --output ORBAX_DIR

The first writes the teacher of a checkpoint (the newest, or that of STEP) as a folder for
`transformers.AutoModel.from_pretrained`; RUN@0 is what the run began with, a baseline for launch/evaluate.py --random.
--verify runs it in PyTorch and in JAX, compares block by block (curia2_jax/export/parity.py says how) and keeps the
differences in its parity.json. --license names the license of the weights, and --report the scores that the model card
tells. --with-heads adds the heads of the teacher, --with-optimizer the student and its optimizer as well, for whoever
wants to go on from there (curia2_jax/export/continuation.py has their names).

The second makes a folder that `launch/main.py --config.init_from=ORBAX_DIR` starts from. WEIGHTS is a folder of a stock
DINOv2 or DINOv3 model (also sharded, or pytorch_model.bin), or a .safetensors or .pth file with a state dict of
facebookresearch's; projection heads that lie there come along.
"""

import pathlib
import sys

from absl import flags

from curia2_jax.errors import UserError
from launch import command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "RUN or RUN@STEP: the run whose teacher is exported.")
_PRETRAINED = flags.DEFINE_string(
    "from-pretrained",
    None,
    "Folder of a Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel, or a file of a DINOv2 state dict.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.")
_VERIFY = flags.DEFINE_bool("verify", False, "With --checkpoint: compare PyTorch with JAX before anything is kept.")
_LICENSE = flags.DEFINE_string("license", None, "With --checkpoint: license of the weights, such as cc-by-nc-4.0.")
_REPORT = flags.DEFINE_string("report", None, "With --checkpoint: folder of launch/evaluate.py, for the model card.")
_HEADS = flags.DEFINE_bool("with-heads", False, "With --checkpoint: the heads of the teacher, too.")
_OPTIMIZER = flags.DEFINE_bool("with-optimizer", False, "With --checkpoint: the heads, the student and its optimizer.")
_OF_EXPORT = (_VERIFY, _LICENSE, _REPORT, _HEADS, _OPTIMIZER)


def run(_: list[str]) -> int:
    """Checks the flags, then exports or restores; exit code 1 where --verify found a difference."""
    if (_CHECKPOINT.value is None) == (_PRETRAINED.value is None):
        raise UserError("write either --checkpoint RUN or --from-pretrained HF_DIR")
    if _PRETRAINED.value is not None and (wrong := [flag.name for flag in _OF_EXPORT if flag.value]):
        raise UserError(f"--{wrong[0]}: goes with --checkpoint, not with --from-pretrained; leave it out")
    output = pathlib.Path(command.required(_OUTPUT))
    from curia2_jax.export import model_card  # after the flags: a wrong one needs no JAX
    from launch import converting

    try:
        if _CHECKPOINT.value is not None:
            license = model_card.checked_license(_LICENSE.value) if _LICENSE.value is not None else ""
            wanted = converting.Asked(_VERIFY.value, license, _REPORT.value or "", _HEADS.value, _OPTIMIZER.value)
            converting.export(_CHECKPOINT.value, output, wanted)
        elif _PRETRAINED.value is not None:
            converting.restore(_PRETRAINED.value, output)
    except converting.Mismatch as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.start(run)
