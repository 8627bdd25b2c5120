"""Curia-2 ViT-L/16, stage 1. 303,315,200 backbone parameters.

python launch/main.py --config=configs/vitl.py --config.data.corpus=CORPUS
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("L", arg)
