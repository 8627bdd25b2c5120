"""The PyTorch step against the numbers of the released code, so that it may judge others."""

import copy
import json
import pathlib

import numpy as np
import pytest
import torch
from torch import nn

from curia2_jax.planning.torch_peer import losses
from curia2_jax.planning.torch_peer.model import Backbone, Head
from curia2_jax.planning.torch_peer.step import Pretraining

VALUES = json.loads((pathlib.Path(__file__).parents[1] / "reference_values.json").read_text())
RUNS = VALUES["end_to_end_two_steps"]
SHAPE = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4, "in_channels": 3, "image_size": 16}
DTYPES = {"f64": torch.float64, "f32": torch.float32}


def fill(module: nn.Module, dtype: torch.dtype, phase: float = 0.0) -> nn.Module:
    """Every parameter by the formula of the reference file."""
    module = module.to(dtype)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for k, name in enumerate(sorted(parameters)):
            parameter = parameters[name]
            n = np.arange(1, parameter.numel() + 1)
            base = 0.1 * np.sin(1.3 * (k + 1) + 0.017 * n + phase).reshape(parameter.shape)
            if ("norm" in name and name.endswith("weight")) or name.endswith("weight_g"):
                base += 1
            elif name.endswith("gamma"):
                base += 0.5
            parameter.copy_(torch.from_numpy(base))
    return module


def waves(count: int, size: tuple[int, int], rates: tuple[float, float, float], offset: float, dtype) -> torch.Tensor:
    b, c, h, w = np.meshgrid(*(np.arange(1, n + 1) for n in (count, 3, *size)), indexing="ij")
    return torch.from_numpy(np.sin(rates[0] * h * b + rates[1] * w * c + rates[2] * c + offset)).to(dtype)


def modules(dtype, phase: float, separate: bool) -> nn.ModuleDict:
    parts = {"backbone": fill(Backbone(**SHAPE, ffn="mlp", interpolation="offset"), dtype, phase)}
    parts["dino_head"] = fill(Head(32, 48, 16, 24), dtype, phase)
    if separate:
        parts["ibot_head"] = fill(Head(32, 48, 16, 24), dtype, phase + 0.25)
    return nn.ModuleDict(parts)


def entry(model: nn.ModuleDict, name: str) -> list[float]:
    """E.g. "blocks.0.norm1.weight[:3]"."""
    path, where = name.rstrip("]").split("[")
    tensor = dict(model.named_parameters())[path if path.startswith("dino_head") else f"backbone.{path}"]
    index = tuple(slice(int(i[1:])) if i.startswith(":") else int(i) for i in where.split(","))
    return tensor.detach()[index].tolist()


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize(
    ("run", "centering", "separate", "clip_norm"),
    [
        ("centering_shared_head_clip3.0", "softmax_centering", False, 3.0),
        ("sinkhorn_knopp_separate_head_clip0.05", "sinkhorn_knopp", True, 0.05),
    ],
)
def test_two_steps(run, centering, separate, clip_norm, dtype):
    real = DTYPES[dtype]
    # The released code has a float32 part or two even in float64.
    value = {"rel": 1e-6, "abs": 1e-9} if dtype == "f64" else {"rel": 2e-5, "abs": 1e-6}
    norm = {"rel": 1e-6} if dtype == "f64" else {"rel": 1e-4}
    student, teacher = modules(real, 0.0, separate), modules(real, 0.5, separate)
    step = Pretraining(
        student, teacher, centering=centering, regularizer="koleo", regularizer_weight=0.1, layerwise_decay=0.9,
        clip_norm=clip_norm,
    )  # fmt: skip
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, ::3], masks[3, 1::4] = True, True
    crops = waves(4, (16, 16), (0.11, 0.07, 0.3), 0.0, real), waves(6, (8, 8), (0.13, 0.05, 0.2), 0.1, real)
    for number, expected in enumerate(RUNS[run][dtype]):
        found = step(
            *crops, masks, lr=1e-3, last_layer_lr=number * 1e-3, weight_decay=0.05, momentum=0.9, teacher_temp=0.05
        )
        theirs = {"loss": "total", "koleo": "koleo_weighted"}
        for ours in ("loss", "dino_local", "dino_global", "ibot", "koleo"):
            assert found[ours] == pytest.approx(expected[theirs.get(ours, ours)], **value), (number, ours)
        for name, size in expected["grad_norm_preclip"].items():
            assert found[f"grad_norm/{name}"] == pytest.approx(size, **norm), (number, name)
        for role, model in (("student", student), ("teacher", teacher)):
            for name, numbers in expected[role]["entries"].items():
                assert entry(model, name) == pytest.approx(numbers, **value), (number, role, name)
            for name in model:
                flat = torch.cat([p.detach().flatten() for p in model[name].parameters()]).double()
                assert float(flat.norm()) == pytest.approx(expected[role][name]["l2"], **value)
                assert float(flat.sum()) == pytest.approx(expected[role][name]["sum"], **norm)
    if centering == "softmax_centering":
        for name in ("dino", "ibot"):
            center = expected[f"{name}_center_after_2_updates_first4"]
            assert step.centers[name][:4].tolist() == pytest.approx(center, **value)


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        ("A_mlp_noreg_offset0.1", {"ffn": "mlp", "interpolation": "offset"}),
        ("B_swiglu_reg4_antialias", {"ffn": "swiglu", "interpolation": "antialias", "registers": 4, "in_channels": 1}),
    ],
)
def test_backbone(block, shape):
    expected = VALUES["vit_and_head_forward"][block]
    backbone = fill(Backbone(**SHAPE | shape), torch.float64)
    assert sorted(dict(backbone.named_parameters())) == expected["sorted_names"]
    assert sum(p.numel() for p in backbone.parameters()) == expected["n_params"]
    for size in ((16, 16), (28, 28), (8, 12)):
        images = waves(2, size, (0.11, 0.07, 0.3), 0.0, torch.float64)[:, : shape.get("in_channels", 3)]
        patches = size[0] * size[1] // 16
        masks = (3 * torch.arange(2)[:, None] + torch.arange(patches)) % 4 == 0
        wanted = expected["f64"][f"{size[0]}x{size[1]}"]
        with torch.no_grad():
            tokens, masked = backbone(images), backbone(images, masks)
        assert tokens[0, 0, :6].tolist() == pytest.approx(wanted["x_norm_clstoken[0][:6]"], rel=2e-6)
        assert tokens[1, -1, :6].tolist() == pytest.approx(wanted["x_norm_patchtokens[1,-1][:6]"], rel=2e-6, abs=1e-7)
        assert masked[1, 0, :6].tolist() == pytest.approx(wanted["masked_x_norm_clstoken[1][:6]"], rel=2e-6)


def test_sigreg():
    case = next(
        c for c in VALUES["sigreg"]["epps_pulley"] if c["case"] == "unit" and c["t_max"] == 3 and c["n_points"] == 17
    )
    i, d, m = np.arange(1, 65), np.arange(1, 17), np.arange(1, 9)
    directions = np.cos(0.37 * np.outer(d, m) + 0.11 * m)
    directions /= np.linalg.norm(directions, axis=0)
    z = torch.from_numpy(np.sin(0.1 * np.outer(i, d))).requires_grad_()
    value = losses.sigreg(z, torch.from_numpy(directions))
    assert value.item() == pytest.approx(case["pure_f64_mean"], rel=1e-9)
    value.backward()
    grad = case["ref_f64_with_f32_buffers"]["grad"]
    assert z.grad.norm().item() == pytest.approx(grad["l2"], rel=1e-6)
    assert z.grad[5, 3].item() == pytest.approx(grad["g[5,3]"], rel=1e-5)


def test_sigreg_takes_part_in_the_step():
    student = modules(torch.float64, 0.0, True)
    crops = (
        waves(4, (16, 16), (0.11, 0.07, 0.3), 0.0, torch.float64),
        waves(2, (8, 8), (0.1, 0.1, 0.1), 0.0, torch.float64),
    )
    directions = torch.eye(32, dtype=torch.float64)
    step = Pretraining(student, copy.deepcopy(student), regularizer="sigreg", regularizer_weight=0.05)
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, :3] = True
    with torch.no_grad():
        cls = student["backbone"](crops[0], masks)[:, 0]
        by_hand = (losses.sigreg(cls[:2], directions) + losses.sigreg(cls[2:], directions)) / 2
    rates = {"lr": 1e-3, "last_layer_lr": 0.0, "weight_decay": 0.0, "momentum": 0.9, "teacher_temp": 0.05}
    found = step(*crops, masks, **rates, directions=directions)
    assert found["sigreg"] == pytest.approx(0.05 * 512 / 2 * by_hand.item(), rel=1e-9)
