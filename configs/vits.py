"""Curia-2 ViT-S/16, stage 1: 256 pixels.

    python launch/main.py --config=configs/vits.py --config.data.corpus=CORPUS

21,507,840 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 6.5 hours
(413 device-hours) and 10.1 GiB a device, says

    python launch/plan.py --config=configs/vits.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("S", arg)
