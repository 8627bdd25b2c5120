"""Curia-2 ViT-L/16, stage 2: 512 pixels. 304,101,632 backbone parameters.

python launch/main.py --config=configs/vitl_hires.py --config.data.corpus=CORPUS --config.init_from=runs/vitl
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.high_resolution("L", arg)
