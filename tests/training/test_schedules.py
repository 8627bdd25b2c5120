"""Schedules against DINOv2's own arrays, at every step that the reference lists."""

import jax
import numpy as np
import pytest

from curia2_jax.training import schedules
from curia2_jax.training.recipe import OptimConfig, ScheduleConfig
from tests import reference

BLOCK = reference.VALUES["schedules_and_lr_decay"]
RECIPES = {
    "short_vitl16 (global batch 2048, base_lr 0.004)": (4e-3, 2048, 0.992, 0.4),
    "long_vitl14/vitg14 (global batch 3072, base_lr 2e-4)": (2e-4, 3072, 0.994, 0.2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_equal_to_dinov2_at_every_listed_step(name):
    block = BLOCK[name]
    base_lr, batch, momentum, decay_end = RECIPES[name]
    optim = OptimConfig(base_lr, 1e-6, 0.9, 0.999, 3.0, 1.0, 0.2)
    peak = optim.peak_lr(batch)
    assert peak == pytest.approx(block["peak_lr"], rel=1e-15)
    c = ScheduleConfig(
        total_steps=block["total_iters"], warmup_steps=block["warmup_iters"], freeze_last_layer_steps=1250,
            freeze_backbone_steps=0,
        weight_decay=0.04, weight_decay_end=decay_end, teacher_momentum=momentum, teacher_momentum_end=1.0,
        teacher_temp=0.07, teacher_temp_start=0.04, teacher_temp_warmup_steps=37_500,
    )  # fmt: skip
    with jax.enable_x64(True):
        for step, expected in block["values"].items():
            i = np.int32(step)
            lr, last_layer_lr = schedules.learning_rate(i, c, peak, 1e-6)
            found = {
                "lr": lr,
                "last_layer_lr": last_layer_lr,
                "wd": schedules.weight_decay(i, c),
                "momentum": schedules.teacher_momentum(i, c),
                "teacher_temp": schedules.teacher_temp(i, c),
            }
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-18, err_msg=f"step {step}, {key}")


def test_float32_is_near_enough():
    """Training evaluates the same formula in float32."""
    block = BLOCK["long_vitl14/vitg14 (global batch 3072, base_lr 2e-4)"]
    for step, expected in block["values"].items():
        found = schedules.cosine(np.int32(step), block["peak_lr"], 1e-6, 625_000, 100_000)
        np.testing.assert_allclose(found, expected["lr"], rtol=1e-4, atol=1e-12)
