"""Curia-2 ViT-L/16, stage 1: 256 pixels.

    python launch/main.py --config=configs/vitl.py --config.data.corpus=CORPUS

303,315,200 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 31.2 hours
(1,996 device-hours) and 13.0 GiB a device, says

    python launch/plan.py --config=configs/vitl.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("L", arg)
