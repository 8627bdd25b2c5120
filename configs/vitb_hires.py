"""Curia-2 ViT-B/16, stage 2: 512 pixels. 86,072,832 backbone parameters.

python launch/main.py --config=configs/vitb_hires.py --config.data.corpus=CORPUS --config.init_from=runs/vitb
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.high_resolution("B", arg)
