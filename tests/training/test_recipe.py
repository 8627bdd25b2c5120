"""A config is right, or one line says what is wrong with it."""

import pytest

from curia2_jax.errors import UserError
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config


def with_(section, **values):
    c = tiny_config()
    c[section].update(values)
    return c


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_("optim", base_lrr=1.0), "config.optim.base_lrr: unknown key; did you mean base_lr?"),
        (tiny_config() | {"sedd": 1}, "config.sedd: unknown key; did you mean seed?"),
        ({k: v for k, v in tiny_config().items() if k != "masks"}, "config.masks: missing"),
        (with_("optim", base_lr="fast"), "config.optim.base_lr: found 'fast' (str); write a float"),
        (with_("data", global_batch=8.5), "config.data.global_batch: found 8.5 (float); write an int"),
        (with_("crops", global_area=(0.1,)), "config.crops.global_area: found (0.1,); write 2 numbers"),
        (with_("objective", centering="sink"), "config.objective.centering: found 'sink'; write one of"),
        (with_("crops", placement="center"), "config.crops.placement: found 'center'; write one of"),
        (with_("crops", global_size=30), "config.crops.global_size: 30 is no multiple of the patch size 8; write 32"),
        (with_("data", global_batch=10), "config.data.global_batch: 10 is no multiple of data.group_size 4; write 8"),
        (
            tiny_config(objective__sigreg__placement="projector"),
            "config.objective.sigreg.placement: found 'projector', which this run has not; write 'backbone', or "
            "config.objective.invariance.weight above 0",
        ),
        (
            with_("augment", window=(350.0, -250.0)),
            "config.augment.window: found (350.0, -250.0); write (LOWEST, HIGHEST)",
        ),
        (with_("log", every_steps=0), "config.log.every_steps: found 0; write 1 or more"),
        (with_("checkpoint", latest=0), "config.checkpoint.latest: found 0; write 1 or more"),  # would delete them all
        (with_("checkpoint", keep_every_steps=0), "config.checkpoint.keep_every_steps: found 0; write 1 or more"),
    ],
)
def test_a_mistake_is_one_line(config, message):
    with pytest.raises(UserError) as error:
        recipe_from(config)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_json_and_config_give_the_same_recipe():
    import json

    config = tiny_config()
    assert recipe_from(json.loads(json.dumps(config))) == recipe_from(config)
    assert hash(recipe_from(config)) is not None
