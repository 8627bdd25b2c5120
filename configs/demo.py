"""A run of minutes on two CPU cores: what `make demo` trains. Every part of the recipe is on; only the sizes are small.

    python launch/main.py --config=configs/demo.py --config.data.corpus=CORPUS

What is not size: a few hundred steps of 32 images need a larger step, a quicker teacher and residual branches that
are open from the start; the patch embedding, which no long run precedes, learns at the full rate.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: the number of steps, 400 by default; every schedule follows it."""
    c = common.curia2("S")
    c.total_steps = int(arg) if arg else 400
    c.data.global_batch, c.data.group_size = 32, 16
    c.data.canvas, c.data.num_threads = 512, 2
    c.crops.global_size, c.crops.local_size, c.crops.num_local = 96, 48, 4
    c.model.width, c.model.depth, c.model.heads, c.model.patch_size = 128, 4, 4, 8
    c.model.dtype, c.model.layerscale, c.model.drop_path = "float32", 1.0, 0.0
    c.heads.hidden = 256
    c.heads.dino_prototypes = c.heads.ibot_prototypes = 1024
    c.heads.dino_bottleneck = c.heads.ibot_bottleneck = 64
    c.objective.sigreg_slices, c.objective.chunk = 256, 256
    c.optim.base_lr, c.optim.patch_embed_lr_mult = 6e-3, 1.0
    c.schedule.warmup_steps = c.total_steps // 10
    c.schedule.freeze_last_layer_steps = c.total_steps // 50
    c.schedule.teacher_momentum = 0.99
    c.schedule.teacher_temp_warmup_steps = c.total_steps // 3
    c.checkpoint.every_steps, c.checkpoint.keep_every_steps = 100, 1_000_000
    c.log.every_steps = 10
    return c
