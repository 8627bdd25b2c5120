"""What is said of random weights before a run: against the variance that scores have by hand."""

import numpy as np
import pytest

from curia2_jax.models.vit import ViTConfig
from curia2_jax.training.signal import at_start


@pytest.mark.parametrize(("width", "init"), [(128, "normal_0.02"), (768, "normal_0.02"), (128, "fan_in")])
def test_the_entropy_of_attention_follows_from_the_spread_of_its_scores(width, init):
    """Of scores of variance v, softmax loses v / 2 nats where v is small: v = (width 0.02^2)^2, or 1 by fan-in."""
    signal = at_start(ViTConfig(width, 1, width // 32, image_size=96, init=init, layerscale=1.0))
    variance = 1.0 if init == "fan_in" else (width * 0.02**2) ** 2
    lost = (1 - signal.entropy) * np.log(37)
    assert lost == pytest.approx(variance / 2, rel=0.25)


def test_a_narrow_model_is_told_what_it_wants():
    """At width 128 blocks do nothing; what is asked for opens them; 768 is what 0.02 was made for."""
    narrow, wide = (ViTConfig(width, 1, 4, image_size=96) for width in (128, 768))
    repaired = ViTConfig(128, 1, 4, image_size=96, init="fan_in", position_init="sincos")
    found = {model: at_start(model) for model in (narrow, wide, repaired)}
    assert found[narrow].attention < 0.03 and found[narrow].ffn < 0.03
    assert found[repaired].attention > 0.3 and found[repaired].ffn > 0.3
    warning = found[narrow].warning(narrow)
    assert warning.startswith("attention is uniform to 3 digits") and "config.model.init=fan_in" in warning
    assert [found[model].warning(model) for model in (wide, repaired)] == ["", ""]
    assert "attention entropy 0.9997 of uniform" in found[narrow].line()
