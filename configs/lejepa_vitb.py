r"""LeJEPA in place of self-distillation, ViT-B/16 at 256 pixels: no heads, no prototypes, no teacher in the loss.

    python launch/main.py --config=configs/lejepa_vitb.py --config.data.corpus=CORPUS

85,483,008 backbone parameters; 1,280,000,000 images in 625,000 steps. On 64 H100 that takes 9.2 hours
(590 device-hours) and 14.1 GiB a device, says

    python launch/plan.py --config=configs/lejepa_vitb.py --gpus=h100x64 --nocompile

docs/clusters.md says how far to trust that.

Class tokens of two global and eight local views go through a projector; every view is drawn to the mean of its global
views (weight 0.95), and SigReg keeps each view's projections a Gaussian cloud (0.05, arXiv 2511.08544). Nothing is
masked. The teacher remains as the moving average that is evaluated and exported; it is asked nothing.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    return common.lejepa(common.curia2("B", arg))
