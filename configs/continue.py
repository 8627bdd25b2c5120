"""Weights of others go on learning, on CT and MR slices: DINOv2 ViT-B/14 on one GPU, or another size by argument.

    python launch/main.py --config=configs/continue.py:vitb --config.data.corpus=CORPUS --config.init_from=WEIGHTS

WEIGHTS is a folder that `launch/convert.py --from-pretrained` made, or a run. What does not fit is refused with the
key that would; Curia's weights want `--config.model.ffn=swiglu`, DINOv2's with registers
`--config.model.registers=4`, DINOv3's besides `--config.model.positions=rope`. The argument is vits, vitb, vitl or
vitg.

85,470,720 backbone parameters; 6,400,000 images in 50,000 steps. On 1 H100 that takes 3.3 hours
(3.3 device-hours) and 21.8 GiB a device, says

    python launch/plan.py --config=configs/continue.py:vitb --gpus=h100x1 --nocompile

docs/clusters.md says how far to trust that. Batches of 32 to 512 images are in mind (`--config.data.global_batch`), and
the rate follows their square root; 512 want `--config.parallel.accumulation=2`, or 4 for vitl.
"""

from ml_collections import ConfigDict

from configs import common

SIZES = {"vits": "S", "vitb": "B", "vitl": "L", "vitg": "g"}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a key of SIZES, "vitb" by default."""
    if (arg or "vitb") not in SIZES:
        raise ValueError(f"configs/continue.py:{arg}: write one of {', '.join(SIZES)}")
    size = SIZES[arg or "vitb"]
    c = common.curia2(size)
    stage_1 = c.total_steps
    c.total_steps = 50_000  # [ours] watch the scores: continuing for long forgets
    c.init.adapt = "channels:sum,patch:resample,positions:interpolate,heads:new"
    c.data.global_batch = 128  # [ours] what one GPU of 80 GB holds in every size
    c.model.ffn = "swiglu" if size == "g" else "mlp"  # [DINOv2] the released weights
    if c.model.remat == "none":
        c.model.remat = "dots_with_no_batch_dims_saveable"
    # Sinkhorn-Knopp spreads the class tokens of a batch over the prototypes: few tokens want few [ours].
    c.heads.dino_prototypes = c.heads.ibot_prototypes = 16_384
    # The weights were trained with KoLeo, which acts in groups of 16 and so is the same at any batch; SigReg would pull
    # them to another distribution first, and estimates it from the batch [ours].
    c.objective.koleo.weight, c.objective.sigreg.weight = 0.1, 0.0
    c.optim.base_lr = 2e-4  # [DINOv2] a fifth of stage 1's
    # The first block learns at about a quarter of the rate, whatever the depth [ours; DINOv2 has 0.9 in short recipes].
    c.optim.layerwise_decay = {"S": 0.9, "B": 0.9, "L": 0.95, "g": 0.97}[size]
    c.schedule.warmup_steps = 5_000  # [ours]
    c.schedule.freeze_backbone_steps = 2_000  # [ours] new heads send noise back; the rate is at 40 % when they stop
    c.schedule.teacher_momentum = 0.998  # [ours] higher than at 2,048 images, as DINO says of small batches
    for key in ("freeze_last_layer_steps", "teacher_temp_warmup_steps"):
        c.schedule[key] = c.schedule[key] * c.total_steps // stage_1
    c.checkpoint.keep_every_steps = 10_000
    return c
