r"""Curia, the first paper's recipe, ViT-B/16 at 512 pixels throughout: the baseline of every ablation.

    python launch/main.py --config=configs/curia_vitb.py --config.data.corpus=CORPUS \
      --config.model.remat=dots_with_no_batch_dims_saveable

86,072,832 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 51.3 hours
(3,282 device-hours) and 27.8 GiB a device, says

    python launch/plan.py --config=configs/curia_vitb.py --gpus=h100x64 --nocompile \
      --config.model.remat=dots_with_no_batch_dims_saveable

Without remat it asks for 56.4 GiB of each, which JAX does not have of an H100. docs/clusters.md says how far to trust
the hours.

It differs from configs/vitb.py in the seven keys below and in nothing else.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    c = common.curia2("B", arg)
    c.crops.placement = "uniform"
    c.masks.placement = "uniform"
    c.objective.sigreg.weight, c.objective.koleo.weight = 0.0, 0.1
    c.crops.global_size = int(arg) if arg else 512
    c.crops.local_size = 192
    c.optim.base_lr = 2e-4
    return c
