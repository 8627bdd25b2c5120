"""Curia-2 ViT-g/16, stage 1: 256 pixels.

    python launch/main.py --config=configs/vitg.py --config.data.corpus=CORPUS

1,134,261,248 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 93.5 hours
(5,987 device-hours) and 8.4 GiB a device, says

    python launch/plan.py --config=configs/vitg.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.

The shape is DINOv2's giant2 (width 1536, 40 blocks, 24 heads, SwiGLU). Reports on Curia-2 speak of 1.3 billion
parameters; no published shape explains that figure, so this is the billion-parameter ViT whose recipe is known.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("g", arg)
