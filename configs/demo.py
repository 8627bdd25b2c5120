"""A run of minutes on two CPU cores: what `make demo` trains. Every part of the recipe is on; only the sizes are small.

    python launch/main.py --config=configs/demo.py --config.data.corpus=CORPUS

837,056 backbone parameters; 9,600 images in 300 steps.

What is not size, and why a few hundred steps of 32 images need it (measured on synthetic studies, class tokens):
- matrices by fan-in: at width 128 a standard deviation of 0.02 leaves attention uniform and the blocks identities;
  the student then learns nothing of the other view in the first hundred steps. Positions start as sines and cosines;
- open residual branches (LayerScale 1) and a patch embedding at the full rate: no long run precedes;
- masks on half of the crops, as in DINOv2: a masked class token has to guess what its teacher sees;
- views that agree more (larger boxes, milder intensities), so that the first invariances are found early;
- a sharp teacher: at temperature 0.04 it agrees with the student on the uniform answer before either knows anything;
- a teacher that follows within 25 steps: at momentum 0.98 it stays near the start for much of the run;
- few prototypes: Sinkhorn-Knopp spreads 64 class tokens a step over them, and over thousands it could only be uniform;
- a small weight of SigReg, of 64 directions: it stands beside a DINO head and need not carry the run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: the number of steps, 300 by default; every schedule follows it."""
    c = common.curia2("S")
    c.total_steps = int(arg) if arg else 300
    c.data.global_batch, c.data.group_size = 32, 16
    c.data.num_threads = 2
    c.crops.global_size, c.crops.local_size, c.crops.num_local = 96, 48, 4
    c.crops.global_area, c.crops.local_area = (0.7, 1.0), (0.2, 0.6)
    c.masks.probability, c.masks.ratio = 0.5, (0.2, 0.6)
    c.augment.gamma_rate, c.augment.brightness, c.augment.contrast = 0.2, 0.1, 0.1
    c.augment.blur_rate = (0.0, 0.2, 0.2)
    c.model.width, c.model.depth, c.model.heads = 128, 4, 4
    c.model.dtype, c.model.layerscale, c.model.drop_path = "float32", 1.0, 0.0
    c.model.init, c.model.position_init = "fan_in", "sincos"
    c.model.scan = False  # four blocks: the loop costs a CPU more than compiling them one by one
    c.heads.hidden = 256
    c.heads.dino_prototypes = c.heads.ibot_prototypes = 128
    c.heads.dino_bottleneck = c.heads.ibot_bottleneck = 64
    c.objective.sigreg.directions, c.objective.chunk = 64, 256
    c.objective.sigreg.weight = 2e-4
    c.optim.base_lr, c.optim.patch_embed_lr_mult = 0.012, 1.0
    c.schedule.warmup_steps = c.total_steps // 10
    c.schedule.freeze_last_layer_steps = c.total_steps // 50
    c.schedule.teacher_momentum = 0.96
    c.schedule.teacher_temp = 0.015
    c.schedule.teacher_temp_warmup_steps = 0
    c.checkpoint.every_steps, c.checkpoint.keep_every_steps = 100, 1_000_000
    c.log.every_steps = 10
    c.probe.every_steps, c.probe.slices = 50, 192
    return c
