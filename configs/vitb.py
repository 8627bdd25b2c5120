"""Curia-2 ViT-B/16, stage 1: 256 pixels.

    python launch/main.py --config=configs/vitb.py --config.data.corpus=CORPUS

85,483,008 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 13.0 hours
(834 device-hours) and 17.5 GiB a device, says

    python launch/plan.py --config=configs/vitb.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.curia2("B", arg)
