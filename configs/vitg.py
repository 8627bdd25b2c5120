"""Curia-2 ViT-g/16, stage 1. 1,134,261,248 backbone parameters.

    python launch/main.py --config=configs/vitg.py --config.data.corpus=CORPUS

The shape is DINOv2's giant2 (width 1536, 40 blocks, 24 heads, SwiGLU). Reports on Curia-2 speak of 1.3 billion
parameters; no published shape explains that figure, so this is the billion-parameter ViT whose recipe is known.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("g", arg)
