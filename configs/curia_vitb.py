"""Curia, the first paper's recipe, ViT-B/16 at 512 pixels throughout: the baseline of every ablation.

    python launch/main.py --config=configs/curia_vitb.py --config.data.corpus=CORPUS

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
