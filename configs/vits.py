"""Curia-2 ViT-S/16, stage 1. 21,507,840 backbone parameters.

python launch/main.py --config=configs/vits.py --config.data.corpus=CORPUS
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("S", arg)
