"""The folder of a run: one config a run, and those of an earlier release."""

import json

import pytest

from curia2_jax.errors import UserError
from curia2_jax.training import workdir
from curia2_jax.training.earlier import upgraded
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config


def as_before(config):
    """A nested config as 0.1.0 wrote it, by hand."""
    old = json.loads(json.dumps(config))
    old["views"] = old.pop("augment")
    terms = {name: old["objective"].pop(name) for name in ("dino", "ibot", "koleo", "sigreg")}
    old["objective"] |= {
        "dino_weight": terms["dino"]["weight"], "ibot_weight": terms["ibot"]["weight"],
        "regularizer": "sigreg", "regularizer_weight": terms["sigreg"]["weight"],
        "sigreg_placement": terms["sigreg"]["placement"], "sigreg_slices": terms["sigreg"]["directions"],
        "sigreg_knots": terms["sigreg"]["knots"], "sigreg_t_max": terms["sigreg"]["t_max"],
    }  # fmt: skip
    del old["data"]["reduce"], old["data"]["exclude"], old["model"]["init"], old["model"]["position_init"]
    return old


def test_a_run_of_the_old_keys_goes_on(tmp_path):
    """Its config is brought up to date, says the same, and takes no other value than before."""
    config = tiny_config(objective__sigreg__weight=0.03)
    (tmp_path / "config.json").write_text(json.dumps(as_before(config)))
    workdir.claim(tmp_path, config)
    assert recipe_from(upgraded(as_before(config))) == recipe_from(config)
    younger = {name: section for name, section in config["objective"].items() if name != "koleo"}
    without = dict(config, objective=config["objective"] | {"koleo": {"weight": 0.0}})
    assert recipe_from(upgraded(dict(config, objective=younger))) == recipe_from(without)
    with pytest.raises(UserError, match=r"config\.objective\.sigreg\.weight = 0\.03, now 0\.1"):
        workdir.claim(tmp_path, tiny_config(objective__sigreg__weight=0.1))


@pytest.mark.parametrize(
    ("regularizer", "weights"), [("sigreg", (0.05, 0.0)), ("koleo", (0.0, 0.05)), ("none", (0.0, 0.0))]
)
def test_the_old_choice_of_a_regularizer_is_two_weights(regularizer, weights):
    old = as_before(tiny_config())
    old["objective"] |= {"regularizer": regularizer, "regularizer_weight": 0.05}
    recipe = recipe_from(upgraded(old))
    assert (recipe.objective.sigreg.weight, recipe.objective.koleo.weight) == weights


def test_an_old_key_that_is_typed_is_refused_with_the_new_one():
    for section, key, words in (
        ("objective", "regularizer_weight", r"write config\.objective\.sigreg\.weight"),
        ("objective", "sigreg_slices", r"write config\.objective\.sigreg\.directions"),
    ):
        config = tiny_config()
        config[section][key] = 1
        with pytest.raises(UserError, match=words) as error:
            recipe_from(config)
        assert "\n" not in str(error.value)
    config = tiny_config()
    config["views"] = config.pop("augment")
    with pytest.raises(UserError, match=r"config\.views: has another name now; write config\.augment"):
        recipe_from(config)


@pytest.mark.parametrize("damaged", [b"", b'{"seed": 1, "da', b"\xff\xfe\x00", b"[]", b"null"])
def test_a_damaged_config_is_one_line(tmp_path, damaged):
    (tmp_path / "config.json").write_bytes(damaged)
    with pytest.raises(UserError, match=r"config\.json: damaged \(\w+\); write the config of the run") as error:
        workdir.claim(tmp_path, tiny_config())
    assert "\n" not in str(error.value)
