"""Times the eager PyTorch step on random crops, in float32 on the CPU.

python -m curia2_jax.planning.torch_peer.bench --width 384 --depth 12 --heads 6 --images 4 --steps 6 --json
"""

import argparse
import copy
import json
import time

import torch
from torch import Tensor, nn

from curia2_jax.planning.torch_peer.model import Backbone, Head
from curia2_jax.planning.torch_peer.step import Pretraining

RATES = {"lr": 1e-4, "last_layer_lr": 1e-4, "weight_decay": 0.04, "momentum": 0.994, "teacher_temp": 0.04}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--width", type=int, default=384)
    add("--depth", type=int, default=12)
    add("--heads", type=int, default=6)
    add("--patch", type=int, default=16)
    add("--channels", type=int, default=1)
    add("--ffn", choices=("swiglu", "mlp"), default="swiglu")
    add("--registers", type=int, default=0)
    add("--images", type=int, default=4)
    add("--global", type=int, default=224, dest="global_size")
    add("--local", type=int, default=96, dest="local_size")
    add("--num-local", type=int, default=8)
    add("--prototypes", type=int, default=4096)
    add("--hidden", type=int, default=2048)
    add("--bottleneck", type=int, default=256)
    add("--shared-head", action="store_true", help="iBOT uses the DINO head")
    add("--centering", choices=("sinkhorn_knopp", "softmax_centering"), default="sinkhorn_knopp")
    add("--regularizer", choices=("koleo", "sigreg", "none"), default="koleo")
    add("--slices", type=int, default=1024, help="directions of SigReg")
    add("--steps", type=int, default=6, help="timed steps, after one that is not")
    add("--threads", type=int, default=0, help="of PyTorch; 0: its own choice")
    add("--json", action="store_true", help="one JSON object instead of text")
    return parser.parse_args()


def pretraining(a: argparse.Namespace) -> Pretraining:
    backbone = Backbone(
        width=a.width, depth=a.depth, heads=a.heads, patch_size=a.patch, in_channels=a.channels,
        image_size=a.global_size, ffn=a.ffn, registers=a.registers,
        interpolation="antialias" if a.registers else "size",
    )  # fmt: skip
    parts = {"backbone": backbone, "dino_head": Head(a.width, a.hidden, a.bottleneck, a.prototypes)}
    if not a.shared_head:
        parts["ibot_head"] = Head(a.width, a.hidden, a.bottleneck, a.prototypes)
    student = nn.ModuleDict(parts)
    weight = 0.05 if a.regularizer == "sigreg" else 0.1
    return Pretraining(
        student,
        copy.deepcopy(student),
        centering=a.centering,
        regularizer=a.regularizer,
        regularizer_weight=weight,
    )


def random_masks(crops: int, patches: int) -> Tensor:
    """(crops, patches) bool: half of the crops masked, with DINOv2's ladder of ratios from 0.1 to 0.5."""
    edges = torch.linspace(0.1, 0.5, crops // 2 + 1)[1:]
    masks = torch.zeros(crops, patches, dtype=torch.bool)
    for mask, ratio in zip(masks, edges, strict=False):
        mask[torch.randperm(patches)[: int(patches * ratio)]] = True
    return masks[torch.randperm(crops)]


def main() -> None:
    a = arguments()
    torch.manual_seed(0)
    if a.threads:
        torch.set_num_threads(a.threads)
    step = pretraining(a)
    global_crops = torch.randn(2 * a.images, a.channels, a.global_size, a.global_size)
    local_crops = torch.randn(a.num_local * a.images, a.channels, a.local_size, a.local_size)
    seconds = []
    for _ in range(1 + a.steps):
        masks = random_masks(2 * a.images, (a.global_size // a.patch) ** 2)
        directions = nn.functional.normalize(torch.randn(a.width, a.slices), dim=0)
        start = time.perf_counter()
        metrics = step(global_crops, local_crops, masks, **RATES, directions=directions)
        seconds.append(time.perf_counter() - start)
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "images": a.images,
        "step_seconds": seconds[1:],
        "best_seconds": min(seconds[1:]),
        "loss": metrics["loss"],
    }
    if a.json:
        print(json.dumps(result))
    else:
        best = result["best_seconds"]
        print(f"{best:.3f} s a step, best of {a.steps}; {a.images / best:.2f} images/s")


if __name__ == "__main__":
    main()
