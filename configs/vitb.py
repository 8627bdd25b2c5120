"""Curia-2 ViT-B/16, stage 1. 85,483,008 backbone parameters.

python launch/main.py --config=configs/vitb.py --config.data.corpus=CORPUS
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("B", arg)
