"""Curia-2 ViT-B/16, stage 2: 512 pixels.

    python launch/main.py --config=configs/vitb_hires.py --config.data.corpus=CORPUS --config.init_from=runs/vitb

86,072,832 backbone parameters; 10,240,000 images in 10,000 steps. On 64 H100 that takes 0.41 hours
(26 device-hours) and 30.3 GiB a device, says

    python launch/plan.py --config=configs/vitb_hires.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.high_resolution("B", arg)
