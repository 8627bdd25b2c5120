"""The step: teacher, targets, student, losses, backward, clipping, AdamW, moving average."""

from typing import cast

import torch
from torch import Tensor, nn

from curia2_jax.planning.torch_peer import losses
from curia2_jax.planning.torch_peer.model import Backbone


class Pretraining:
    """Student, teacher, centers and optimizer.

    Args:
      student, teacher: `backbone`, `dino_head` and, unless iBOT shares it, `ibot_head`.
      centering: "sinkhorn_knopp" or "softmax_centering".
      regularizer: "koleo", "sigreg" or "none", of the student's class tokens of each global view.
    """

    def __init__(
        self,
        student: nn.ModuleDict,
        teacher: nn.ModuleDict,
        *,
        centering: str = "sinkhorn_knopp",
        regularizer: str = "koleo",
        regularizer_weight: float = 0.1,
        layerwise_decay: float = 1.0,
        patch_embed_lr_mult: float = 0.2,
        clip_norm: float = 3.0,
    ):
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.centering, self.clip_norm = centering, clip_norm
        self.regularizer, self.regularizer_weight = regularizer, regularizer_weight
        self.centers = {"dino": torch.zeros(()), "ibot": torch.zeros(())}
        groups = param_groups(student, layerwise_decay, patch_embed_lr_mult)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def __call__(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        *,
        lr: float,
        last_layer_lr: float,
        weight_decay: float,
        momentum: float,
        teacher_temp: float,
        directions: Tensor | None = None,
    ) -> dict[str, float]:
        """One step on crops (2B, C, R, R) and (L B, C, r, r), view-major, and masks (2B, N) bool.

        `directions` (D, M) are SigReg's. Returns the terms of the loss and the gradient norms before clipping.
        """
        terms = self.losses(global_crops, local_crops, masks, teacher_temp, directions)
        self.optimizer.zero_grad()
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        norms = {
            f"grad_norm/{name}": nn.utils.clip_grad_norm_(module.parameters(), self.clip_norm)
            for name, module in self.student.items()
        }
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_mult"] * (last_layer_lr if group["last_layer"] else lr)
            group["weight_decay"] = group["wd_mult"] * weight_decay
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        return {name: value.item() for name, value in ({"loss": total} | terms | norms).items()}

    def losses(
        self, global_crops: Tensor, local_crops: Tensor, masks: Tensor, teacher_temp: float, directions: Tensor | None
    ) -> dict[str, Tensor]:
        """The weighted terms of the objective. Moves the centers, which serve from the next step on."""
        images = global_crops.shape[0] // 2
        ibot_head = "ibot_head" if "ibot_head" in self.student else "dino_head"
        patches = slice(-masks.shape[1], None)

        with torch.no_grad():
            tokens = self.teacher["backbone"](global_crops)
            logits = {
                "dino": self.teacher["dino_head"](tokens[:, 0]),
                "ibot": self.teacher[ibot_head](tokens[:, patches][masks]),
            }
            targets = {name: self.targets(name, z, teacher_temp) for name, z in logits.items()}

        tokens = self.student["backbone"](global_crops, masks)
        local_tokens = self.student["backbone"](local_crops)
        scores = self.student["dino_head"](torch.cat([tokens[:, 0], local_tokens[:, 0]]))
        local, crossed = losses.dino(targets["dino"], scores[: 2 * images], scores[2 * images :], images)
        student_patches = self.student[ibot_head](tokens[:, patches][masks])
        terms = {
            "dino_local": local,
            "dino_global": crossed,
            "ibot": losses.ibot(targets["ibot"], student_patches, masks),
        }
        views = tokens[:, 0].split(images)
        if self.regularizer == "koleo":
            terms["koleo"] = self.regularizer_weight * torch.stack([losses.koleo(view) for view in views]).sum()
        elif self.regularizer == "sigreg" and directions is not None:
            mean = torch.stack([losses.sigreg(view, directions) for view in views]).mean()
            terms["sigreg"] = self.regularizer_weight * 512 / images * mean
        return terms

    def targets(self, name: str, logits: Tensor, temp: float) -> Tensor:
        if self.centering == "sinkhorn_knopp":
            return losses.sinkhorn_knopp(logits, temp)
        probabilities = losses.softmax_centering(logits, self.centers[name], temp)
        self.centers[name] = 0.9 * self.centers[name] + 0.1 * logits.mean(0)
        return probabilities


def param_groups(student: nn.ModuleDict, layerwise_decay: float, patch_embed_lr_mult: float) -> list[dict]:
    """AdamW's groups: parameters with equal multipliers together, so that one fused kernel updates them."""
    backbone = cast(Backbone, student["backbone"])
    last = len(backbone.blocks) + 1
    groups: dict[tuple, dict] = {}
    for path, parameter in student.named_parameters():
        module, name = path.split(".", 1)
        layer = last
        if module == "backbone" and name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        elif module == "backbone" and not name.startswith("norm."):
            layer = 0
        lr_mult = layerwise_decay ** (last - layer) * (patch_embed_lr_mult if "patch_embed" in name else 1.0)
        wd_mult = 0.0 if name.endswith("bias") or "norm" in name or "gamma" in name else 1.0
        key = (lr_mult, wd_mult, "last_layer" in name)
        group = {"params": [], "lr_mult": lr_mult, "wd_mult": wd_mult, "last_layer": key[2]}
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())
