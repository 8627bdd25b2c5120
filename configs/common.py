"""Every knob once, with its unit, its default and where that comes from.

Marks: [DINOv2] the released code and configs of DINOv2; [Curia-2] arXiv 2604.01987 and its model card; [LeJEPA] the
public code of SigReg; [ours] no paper gives the value: the reason stands beside it.
"""

from ml_collections import ConfigDict

SIZES = {  # width, depth, heads [DINOv2]; the head size is 64 everywhere
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "g": (1536, 40, 24),
}


def curia2(size: str, arg: str | None = None) -> ConfigDict:
    """Stage 1 of Curia-2: low-resolution pre-training of a ViT of the given size.

    Args:
      size: a key of SIZES.
      arg: what stands behind the colon in `--config=configs/vitb.py:512`: the side of the global crops in pixels.
    """
    width, depth, heads = SIZES[size]
    c = ConfigDict()
    c.seed = 0
    c.total_steps = 625_000  # [DINOv2] the long recipe; Curia's released run (475k steps) lies within it
    c.init_from = ""  # RUN or RUN@STEP or a folder of `convert.py --from-pretrained`: where weights come from

    c.init = ConfigDict()
    # What may be done to weights of `init_from` that have another shape: channels:sum|mean, patch:resample,
    # registers:new|drop, positions:interpolate, heads:new, joined by commas; the rest is refused (docs/weights.md).
    c.init.adapt = "positions:interpolate"

    c.data = ConfigDict()
    c.data.corpus = ""  # folder(s) made by launch/ingest.py; with weights as "A:2,B:1"
    c.data.where = ""  # conditions on the index, such as "modality=CT,spacing_z<=5"; "": every slice
    c.data.held_out = 0.0  # share of the patients kept out of training, chosen by a hash
    c.data.exclude = ""  # benchmarks, as "A,B", whose test patients are kept out of training; with the same salt
    c.data.global_batch = 2048  # images a step over all devices [ours: between DINOv2's 2,048 and 3,072]
    c.data.group_size = 16  # images that share mask ratios, drop-path subsets, KoLeo neighbors [ours: DINOv3's KoLeo]
    c.data.canvas = 0  # pixels along a side of what slices are padded to; 0: the corpus's largest, in multiples of 32
    # 1: slices are decoded at half their size, in a quarter of the time and memory, for stages of low resolution. Not
    # exact: the decoder's low-pass is not PIL's antialiasing, small boxes are enlarged, and the z-score takes its
    # statistics from the reduced slice. An ablation [ours].
    c.data.reduce = 0
    c.data.modality_temperature = 1.0  # 1: CT and MR as often as they occur; larger: more evenly [ours]
    c.data.max_slices_per_series = 0  # 0: all
    c.data.max_corrupt_rate = 0.001  # share of unreadable records at which a run stops [ours]
    c.data.num_threads = 8  # of the loader, in one process
    c.data.num_workers = 0  # loader processes; 0: threads only, which is faster until one process is full
    c.data.prefetch = 4  # batches ready in memory

    c.crops = ConfigDict()
    c.crops.placement = "anatomical"  # or "uniform" [Curia-2]
    c.crops.global_size = int(arg) if arg else 256  # pixels [ours: half of the released 512, a clean 16 -> 32 grid]
    c.crops.local_size = 96  # pixels [DINOv2]
    c.crops.num_local = 8  # [DINOv2]
    c.crops.unit = "area"  # or "mm": then *_mm gives the sides
    c.crops.global_area = (0.32, 1.0)  # of the slice [DINOv2]
    c.crops.local_area = (0.05, 0.32)  # [DINOv2]
    c.crops.global_mm = (200.0, 400.0)  # side of a crop [ours: an organ with its surroundings to a whole trunk]
    c.crops.local_mm = (60.0, 200.0)  # [ours: one organ]
    c.crops.aspect = (3 / 4, 4 / 3)  # [DINOv2]
    c.crops.flip_rate = 0.0  # left-right; 0 because laterality is a label [ours]

    c.masks = ConfigDict()
    c.masks.placement = "anatomical"  # or "uniform" [Curia-2]
    c.masks.probability = 0.5  # share of global crops with a mask [DINOv2]
    c.masks.ratio = (0.1, 0.5)  # of the patches of a masked crop [DINOv2]

    # One channel: no hue, saturation, grayscale or solarize. DINOv2's strengths where it has the step [ours].
    c.augment = ConfigDict()
    # CT clipped to (LOWEST, HIGHEST) HU before the z-score, in training and in the exported processor; (): at air only,
    # so that nothing is lost of lung and bone. (-250.0, 350.0) spreads soft tissue ten times wider [ours].
    c.augment.window = ()
    c.augment.normalize = "slice"  # z-score by the whole slice, or the "crop" [ours: small crops keep air from bone]
    c.augment.gamma_rate = 0.8  # [ours: the rate of DINOv2's color jitter]
    c.augment.gamma = 1.5
    c.augment.brightness_rate = 0.8
    c.augment.brightness = 0.4  # standard deviations of the slice
    c.augment.contrast_rate = 0.8
    c.augment.contrast = 0.4
    c.augment.blur_rate = (0.0, 0.9, 0.5)  # [DINOv2] as its code runs, which is the inverse of what it says
    c.augment.blur_sigma = (0.1, 2.0)  # pixels [DINOv2]
    c.augment.noise_rate = 0.2  # [ours: rare; scans bring their own]
    c.augment.noise = 0.1

    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.heads = width, depth, heads
    c.model.patch_size = 16  # [Curia-2]
    c.model.in_channels = 1  # [Curia-2]
    c.model.ffn = "swiglu"  # or "mlp" [Curia-2]
    c.model.registers = 0  # [Curia-2] the released class is stock Dinov2Model
    c.model.layerscale = 1e-5  # [DINOv2]
    c.model.drop_path = {"S": 0.1, "B": 0.1, "L": 0.3, "g": 0.4}[size]  # [DINOv2] L and g; [ours] milder for S and B
    c.model.interpolation = ""  # of the position embedding; "": what transformers does, "size" without registers
    # Standard deviation of the matrices of backbone and heads: 0.02 whatever the width, or "fan_in", rows^-1/2, which
    # narrow models need. At width 128 and 0.02 attention is uniform and the blocks are identities.
    c.model.init = "normal_0.02"  # [DINOv2] its truncation at +-2 never cuts
    c.model.positions = "learned"  # a table [Curia-2]; or "rope", rotary, with DINOv3's blocks: its weights want that
    c.model.position_init = "normal"  # [DINOv2] at 0.02, or "sincos" [ours: patch tokens of a short run profit]
    c.model.dtype = "bfloat16"  # of the matrix products; parameters, statistics and losses are float32
    c.model.attention = "auto"  # "xla", "cudnn" on GPUs, "pallas" on TPUs
    # What blocks keep for the backward pass: "none" computes nothing twice; else a policy of jax.checkpoint_policies
    # and names of models/remat.py, joined by commas. With ",attn_out" attention's kernel is not run again.
    c.model.remat = {"S": "none", "B": "none", "L": "dots_with_no_batch_dims_saveable", "g": "nothing_saveable"}[size]
    c.model.scan = True  # one compiled block instead of `depth`

    c.heads = ConfigDict()
    c.heads.shared = False  # iBOT uses the DINO head [DINOv2: separate in the long recipe]
    c.heads.dino_prototypes = 131_072  # [DINOv2]
    c.heads.dino_bottleneck = 384  # [DINOv2]
    c.heads.ibot_prototypes = 131_072  # [DINOv2]
    c.heads.ibot_bottleneck = 256  # [DINOv2]
    c.heads.projector_width = 512  # columns of LeJEPA's projector, there if objective.invariance.weight is [LeJEPA]
    c.heads.hidden = 2048  # [DINOv2] and [LeJEPA]
    c.heads.layers = 3  # [DINOv2] and [LeJEPA]
    c.heads.weight_norm = True  # [DINOv2]; False: DINOv3's plain last layer

    c.objective = ConfigDict()
    c.objective.centering = "sinkhorn_knopp"  # or "softmax_centering" [DINOv2: the long recipe]
    c.objective.student_temp = 0.1  # [DINOv2]
    # Rows of prototype logits in float32 at a time: 64 MiB of 131,072. Fewer stay in caches between the readings of a
    # chunk, more sum into the prototypes' gradient less often [ours: the fastest of 64 to 512 on a CPU; on a TPU 256
    # would be 2 % of a step faster by its compiler, and take 0.15 GiB more].
    c.objective.chunk = 128
    # The terms, each with its weight; 0 leaves one out.
    c.objective.dino = ConfigDict({"weight": 1.0})  # [DINOv2]
    c.objective.ibot = ConfigDict({"weight": 1.0})  # [DINOv2]
    c.objective.koleo = ConfigDict({"weight": 0.0})  # [Curia-2] SigReg in its place; 0.1 in DINOv2 and Curia
    # Squared distance of the projection of every view to the mean of the global ones; 0.95 with SigReg 0.05 [LeJEPA].
    c.objective.invariance = ConfigDict({"weight": 0.0})
    c.objective.sigreg = ConfigDict()
    c.objective.sigreg.weight = 0.05  # [LeJEPA] times 512 / batch, so that it means the same at any batch
    # Class token after the final norm; "head": the DINO head's bottleneck [ours: KoLeo's place]; "projector" [LeJEPA].
    c.objective.sigreg.placement = "backbone"
    c.objective.sigreg.directions = 1024  # [LeJEPA]
    c.objective.sigreg.knots = 17  # [LeJEPA]
    c.objective.sigreg.t_max = 3.0  # [LeJEPA]

    c.optim = ConfigDict()
    c.optim.base_lr = 5e-4 if size == "g" else 1e-3  # per 1,024 images, square-root rule [ours: above Curia's 2e-4]
    c.optim.min_lr = 1e-6  # [DINOv2]
    c.optim.beta1 = 0.9  # [DINOv2]
    c.optim.beta2 = 0.999  # [DINOv2]
    c.optim.clip_norm = 3.0  # of each sub-module [DINOv2]
    c.optim.layerwise_decay = 1.0  # [DINOv2: the long recipe]
    c.optim.patch_embed_lr_mult = 0.2  # [DINOv2]

    c.schedule = ConfigDict()
    c.schedule.warmup_steps = 100_000  # of the learning rate [DINOv2]
    c.schedule.freeze_last_layer_steps = 1_250  # [DINOv2]
    c.schedule.freeze_backbone_steps = 0  # only the heads learn that long; for new heads on trained weights [ours]
    c.schedule.weight_decay = 0.04  # [DINOv2]
    c.schedule.weight_decay_end = 0.2  # [DINOv2]
    c.schedule.teacher_momentum = 0.994  # [DINOv2]
    c.schedule.teacher_momentum_end = 1.0  # [DINOv2]
    c.schedule.teacher_temp = 0.07  # [DINOv2]
    c.schedule.teacher_temp_start = 0.04  # [DINOv2]
    c.schedule.teacher_temp_warmup_steps = 37_500  # [DINOv2]

    c.parallel = ConfigDict()
    # Devices that share one copy of parameters, teacher and moments; more than there are means all of them [ours: L and
    # g with their moments do not leave room for images on one 16 GiB chip; eight is a node].
    c.parallel.fsdp = {"S": 1, "B": 1, "L": 8, "g": 8}[size]
    c.parallel.accumulation = 1  # micro-batches a step

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 1_000  # what a preemption can cost
    c.checkpoint.latest = 2  # newest checkpoints kept
    c.checkpoint.keep_every_steps = 25_000  # and one kept forever at each multiple of this

    # What a run does about a bad step; changing it does not change the others.
    c.guard = ConfigDict()
    # Of a step whose loss or gradient is not finite: "stop" the run, "skip" its update, or "rewind" to the newest
    # checkpoint and go on behind the batch [ours: somebody should look first].
    c.guard.nonfinite = "stop"
    c.guard.limit = 10  # bad steps that a run may have, before it stops
    # A gradient norm of so many times the median of the last 100 is bad, too; 0: none is [ours].
    c.guard.spike = 0.0
    c.guard.collapse = "warn"  # or "stop", where all images get one class token [ours]

    c.log = ConfigDict()
    c.log.every_steps = 50

    # The teacher is asked for the height of a slice in its scan, modality and plane, by ridge and nearest neighbors.
    c.probe = ConfigDict()
    c.probe.every_steps = 1_000  # and at step 0 and the last; 0: never [ours: a hundredth of a percent of the run]
    c.probe.slices = 512  # of patients that data.held_out keeps out of training, if there are any [ours]
    c.probe.corpus = ""  # "": of the training; or another, of which every patient is asked about
    return c


def lejepa(c: ConfigDict) -> ConfigDict:
    """`c` with LeJEPA's objective in place of self-distillation, and nothing masked."""
    c.objective.dino.weight = c.objective.ibot.weight = c.objective.koleo.weight = 0.0
    c.objective.invariance.weight = 0.95  # [LeJEPA]
    c.objective.sigreg.weight, c.objective.sigreg.placement = 0.05, "projector"  # [LeJEPA]
    c.masks.probability = 0.0  # a projection of patches that are not seen would have to be guessed [LeJEPA]
    return c


def high_resolution(size: str, arg: str | None = None) -> ConfigDict:
    """Stage 2 of Curia-2: a short continuation at 512 pixels from a stage-1 run given as `--config.init_from=RUN`.

    Student and teacher keep their heads, the position grid is interpolated 16 x 16 -> 32 x 32, the optimizer starts
    anew, and every schedule is compressed into the stage, as in DINOv2's own high-resolution phase.
    """
    c = curia2(size)
    stage_1 = c.total_steps
    c.total_steps = 10_000  # [DINOv2]
    c.crops.global_size = int(arg) if arg else 512  # [Curia-2]
    c.crops.local_size = 192  # [ours: 96 scaled with the global crops]
    c.optim.base_lr = c.optim.base_lr / 10  # [ours: DINOv2 says "reduced"]
    c.data.global_batch = 1024  # [ours: four times the tokens of stage 1]
    for key in ("warmup_steps", "teacher_temp_warmup_steps"):
        c.schedule[key] = c.schedule[key] * c.total_steps // stage_1
    c.schedule.freeze_last_layer_steps = 0  # the prototypes are trained already
    c.checkpoint.every_steps = 500
    c.checkpoint.keep_every_steps = 5_000
    return c
