"""The run of minutes that `make demo` makes: configs/demo.py with LeJEPA's objective in place of DINO + iBOT.

    python launch/main.py --config=configs/demo_lejepa.py --config.data.corpus=CORPUS

837,056 backbone parameters; 10,880 images in 340 steps: as much work as the 300 of configs/demo.py.

At equal work it is the better of the two at this size (docs/evaluation.md), which says nothing of the full recipe.
SigReg's weight is LeJEPA's 0.05 at 32 images: the term multiplies by 512 / 32.
"""

from ml_collections import ConfigDict

from configs import common, demo


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: the number of steps, 340 by default; every schedule follows it."""
    c = common.lejepa(demo.get_config(arg or "340"))
    c.objective.sigreg.weight = 0.05 * c.data.global_batch / 512
    c.heads.projector_width = 64
    return c
