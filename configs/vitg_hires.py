"""Curia-2 ViT-g/16, stage 2: 512 pixels. 1,135,440,896 backbone parameters.

python launch/main.py --config=configs/vitg_hires.py --config.data.corpus=CORPUS --config.init_from=runs/vitg
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.high_resolution("g", arg)
