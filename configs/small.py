r"""ViT-S/16 on one GPU: a batch of 32 to 512, as `configs/small.py:BATCH`, 256 by default.

    python launch/main.py --config=configs/small.py --config.data.corpus=CORPUS

21,507,840 backbone parameters; 33,280,000 images in 130,000 steps. On 1 H100 that takes 7.6 hours
(7.6 device-hours) and 23.2 GiB a device, says

    python launch/plan.py --config=configs/small.py --gpus=h100x1 --nocompile

docs/clusters.md says how far to trust that.

What a batch of B images changes, against one of 256 (`scaling`), so that as many images teach the same:
- steps, and every schedule in steps: times 256 / B;
- rate: times (B / 256)^1/2, which is the rule of `optim.base_lr` for every config;
- momentum of the teacher: to the power B / 256, so that it forgets as fast in images (arXiv 2307.13813);
- prototypes: times B / 256, so that as many class tokens are spread over each;
- SigReg: its weight times B / 256, which undoes the 512 / B of the term. The statistic of few images is mostly noise,
  and a weight that is raised for them raises that.
The sweep `demo_batch` of configs/ablations.py tried the rule in small, at as many images: 64 was as good as 32, and
128, in 75 steps, had hardly begun to learn (docs/evaluation.md). This config has not been run.
"""

from ml_collections import ConfigDict

from configs import common

IMAGES = 33_280_000  # 130,000 steps of 256


def scaling(c: ConfigDict, batch: int) -> dict[str, object]:
    """What turns `c` into the same for another batch: dotted keys and values."""
    ratio = batch / c.data.global_batch
    steps = {
        f"schedule.{key}": int(c.schedule[key] / ratio)
        for key in ("warmup_steps", "freeze_last_layer_steps", "teacher_temp_warmup_steps")
    }
    return steps | {
        "total_steps": int(c.total_steps / ratio),
        "data.global_batch": batch,
        "schedule.teacher_momentum": c.schedule.teacher_momentum**ratio,
        "heads.dino_prototypes": int(c.heads.dino_prototypes * ratio),
        "heads.ibot_prototypes": int(c.heads.ibot_prototypes * ratio),
        "objective.sigreg.weight": c.objective.sigreg.weight * ratio,
    }


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: the images of a batch."""
    c = common.curia2("S")
    c.data.global_batch = 256
    c.total_steps = IMAGES // 256
    c.model.init, c.model.position_init = "fan_in", "sincos"
    c.model.remat = "dots_with_no_batch_dims_saveable"  # so that 512 images have room
    c.heads.dino_prototypes = c.heads.ibot_prototypes = 4096  # [ours: eight a class token of a step]
    c.heads.dino_bottleneck = 256  # [DINOv2: the short recipe]
    c.objective.sigreg.weight = 0.025  # [LeJEPA] 0.05 without the factor of 512 / 256
    c.objective.sigreg.directions = 256  # [LeJEPA: its minimal example]
    c.optim.base_lr = 4e-3  # [DINOv2: the short recipe]
    c.schedule.warmup_steps = c.total_steps // 10  # [DINOv2: the short recipe]
    c.schedule.freeze_last_layer_steps = c.total_steps // 100  # [DINOv2: the short recipe]
    c.schedule.teacher_momentum = 0.996  # [DINO] at this batch
    c.schedule.teacher_temp_warmup_steps = c.total_steps * 3 // 10  # [DINOv2: the short recipe]
    batch = int(arg) if arg else 256
    if batch % c.data.group_size or not 32 <= batch <= 512:
        raise ValueError(f"small.py:{batch}: write a multiple of {c.data.group_size} from 32 to 512")
    c.update_from_flattened_dict(scaling(c, batch))
    return c
