"""A run of minutes on two CPU cores: what `make demo` trains. Every part of the recipe is on; only the sizes are small.

    python launch/main.py --config=configs/demo.py --config.data.corpus=CORPUS

840,640 backbone parameters; 9,600 images in 300 steps.

What is not size, and why a few hundred steps of 32 images need it:
- open residual branches (LayerScale 1) and a patch embedding at the full rate: no long run precedes;
- a small weight of SigReg. Its statistic of 32 samples is mostly noise, and Adam follows whatever the gradient holds
  most of: in 200 steps ten times this weight costs a quarter of what the probe gains over the start;
- every crop masked, and more of it: most of what patch tokens learn in so short a run comes from iBOT;
- few prototypes: Sinkhorn-Knopp spreads 64 class tokens a step over them, and over thousands it could only be uniform;
- a sharp teacher: at temperature 0.04 it agrees with the student on the uniform answer before either knows anything;
- views that agree more (larger boxes, milder intensities), so that the first invariances are found early.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: the number of steps, 300 by default; every schedule follows it."""
    c = common.curia2("S")
    c.total_steps = int(arg) if arg else 300
    c.data.global_batch, c.data.group_size = 32, 16
    c.data.num_threads = 2
    c.crops.global_size, c.crops.local_size, c.crops.num_local = 128, 64, 4
    c.crops.global_area, c.crops.local_area = (0.5, 1.0), (0.1, 0.5)
    c.masks.probability, c.masks.ratio = 1.0, (0.2, 0.6)
    c.augment.gamma_rate, c.augment.brightness, c.augment.contrast = 0.2, 0.1, 0.1
    c.augment.blur_rate = (0.0, 0.2, 0.2)
    c.model.width, c.model.depth, c.model.heads = 128, 4, 4
    c.model.dtype, c.model.layerscale, c.model.drop_path = "float32", 1.0, 0.0
    c.model.scan = False  # four blocks: the loop costs a CPU more than compiling them one by one
    c.heads.hidden = 256
    c.heads.dino_prototypes = c.heads.ibot_prototypes = 128
    c.heads.dino_bottleneck = c.heads.ibot_bottleneck = 64
    c.objective.sigreg.directions, c.objective.chunk = 256, 256
    c.objective.sigreg.weight = 2e-4
    c.optim.base_lr, c.optim.patch_embed_lr_mult = 0.012, 1.0
    c.schedule.warmup_steps = c.total_steps // 10
    c.schedule.freeze_last_layer_steps = c.total_steps // 50
    c.schedule.teacher_momentum = 0.98
    c.schedule.teacher_temp = 0.02
    c.schedule.teacher_temp_warmup_steps = 0
    c.checkpoint.every_steps, c.checkpoint.keep_every_steps = 100, 1_000_000
    c.log.every_steps = 10
    return c
