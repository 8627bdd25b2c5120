"""The backbone against the DINOv2 reference, its parameter counts, and what drop path, scan and remat do."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from torch.nn import functional

from curia2_jax.errors import UserError
from curia2_jax.models import pos_embed
from curia2_jax.models.dense import Dense
from curia2_jax.models.drop_path import on_subset, subset_size
from curia2_jax.models.vit import LayerScale, ViT, ViTConfig, gelu
from tests import reference

FORWARD = reference.VALUES["vit_and_head_forward"]
BLOCKS = {
    "A_mlp_noreg_offset0.1": {},
    "B_swiglu_reg4_antialias": {"ffn": "swiglu", "registers": 4, "interpolation": "", "in_channels": 1},
}
SMALL = ViTConfig(width=32, depth=3, heads=2, patch_size=4, image_size=16, dtype="float32", layerscale=0.3)


def close(actual, expected, rtol, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


def forward(config, params, images, masks=None, keys=None):
    """Outputs, and under "prenorm" the tokens that enter the final norm."""
    params, images = jax.tree.map(jnp.asarray, (params, images))
    seen = []

    def note(call, args, kwargs, context):
        if context.module.name == "norm":
            seen.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        out = ViT(config).apply({"params": params}, images, masks, drop_path_keys=keys)
    return {**out, "prenorm": seen[0]}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("size", ["16x16", "28x28", "8x12"])
def test_reference_forward(block, dtype, size):
    expected = FORWARD[block][dtype][size]
    height, width = map(int, size.split("x"))
    full = {"f64": "float64", "f32": "float32"}[dtype]
    # The reference interpolates positions in float32 even in float64 models.
    rtol, atol = (2e-5, 1e-6) if dtype == "f32" else (1e-9, 0) if size == "16x16" else (2e-6, 2e-7)
    config = reference.backbone_config(full, **BLOCKS[block])
    n = height * width // 16
    masks = np.stack([np.zeros((2, n), bool), (3 * np.arange(2)[:, None] + np.arange(n)) % 4 == 0])
    with jax.enable_x64(dtype == "f64"):
        params = reference.backbone_params(config, full)
        images = reference.images(2, height, width, config.in_channels).astype(full)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == FORWARD[block]["n_params"]
        both = jax.jit(jax.vmap(lambda m: forward(config, params, images, m)))(masks)
        assert both["cls"].dtype == full
        plain, masked = ({k: np.asarray(x[i], np.float64) for k, x in both.items()} for i in range(2))
    close(plain["cls"][0, :6], expected["x_norm_clstoken[0][:6]"], rtol, atol)
    close(plain["patches"][1, -1, :6], expected["x_norm_patchtokens[1,-1][:6]"], rtol, atol)
    # A sum of a thousand values of either sign: the error of a float32 term does not shrink with it.
    close(plain["patches"].sum(), expected["x_norm_patchtokens_sum"], rtol, 1e-4 if dtype == "f32" else 20 * atol)
    close(masked["cls"][1, :6], expected["masked_x_norm_clstoken[1][:6]"], rtol, atol)
    assert list(plain["prenorm"].shape) == expected["x_prenorm_shape"]
    close(np.linalg.norm(plain["prenorm"]), expected["x_prenorm_l2"], rtol)
    close(np.linalg.norm(masked["prenorm"]), expected["masked_x_prenorm_l2"], rtol)
    if config.registers:
        close(plain["registers"][0, 3, :6], expected["x_norm_regtokens[0,3][:6]"], rtol, atol)


@pytest.mark.parametrize("block", BLOCKS)
def test_reference_positions(block):
    config = reference.backbone_config("float64", **BLOCKS[block])
    for size, expected in FORWARD[block]["f64"].items():
        height, width = map(int, size.split("x"))
        with jax.enable_x64(True):
            table = jnp.asarray(reference.backbone_params(config, "float64")["pos_embed"])
            position = np.asarray(pos_embed.interpolate(table, (height // 4, width // 4), config.position_form))
        close(np.linalg.norm(position), expected["pos_embed_l2"], 2e-6)
        close(position[0, 1, :4], expected["pos_embed[0,1][:4]"], 2e-6, 2e-7)
        close(position[0, -1, :4], expected["pos_embed[0,-1][:4]"], 2e-6, 2e-7)


SIZES = {
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}


def count(config):
    """Parameters of a backbone, from shapes alone."""
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.in_channels), jnp.float32)
    variables = jax.eval_shape(ViT(config).init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("name", [name for name in reference.VALUES["param_counts"] if name.startswith("vit")])
def test_reference_parameter_counts(name):
    size, ffn, patch, channels, image, registers, _ = name.split("|")
    width, depth, heads = SIZES[size]
    config = ViTConfig(
        width,
        depth,
        heads,
        int(patch[1:]),
        int(channels[2:]),
        int(image[3:]),
        ffn.removesuffix("fused"),
        int(registers[3:]),
    )
    assert count(config) == reference.VALUES["param_counts"][name]


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        ("vit_small", 21_507_840, 21_802_752),
        ("vit_base", 85_483_008, 86_072_832),
        ("vit_large", 303_315_200, 304_101_632),
        ("vit_giant2", 1_134_261_248, 1_135_440_896),
    ],
)
def test_parameter_counts_of_our_sizes(size, low, high):
    """256 and 512 px, patch 16, one channel, SwiGLU, no registers: closed form of the block times depth."""
    config = ViTConfig(*SIZES[size])
    assert (count(config), count(dataclasses.replace(config, image_size=512))) == (low, high)


def params_of(config, seed=0):
    """Random parameters of the right shapes without compiling the initialization; no two layers alike."""
    random = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.in_channels), jnp.float32)
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0.05, 0.2, leaf.shape), jnp.float32), shapes)


def pixels(config, crops, seed=1):
    shape = (crops, config.image_size, config.image_size, config.in_channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_initialisation():
    config = ViTConfig(width=128, depth=4, heads=2, patch_size=8, image_size=64, registers=4)
    params = jax.jit(ViT(config).init)(jax.random.key(0), jnp.zeros((1, 64, 64, 1)))["params"]
    blocks = params["blocks"]
    for branch, names in (("attn", ("query", "key", "value", "out")), ("ffn", ("gate", "up", "down"))):
        for name in names:
            kernel = np.asarray(blocks[branch][name]["kernel"])
            assert kernel.dtype == np.float32
            # Standard deviation of 16,384 or more draws; every layer is drawn anew.
            np.testing.assert_allclose(kernel.std(axis=(1, 2)), 0.02, rtol=0.03)
            assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.05
            # Plain normal: a normal cut at two sigma has no such values.
            assert np.abs(kernel).max() > 0.06
            assert not np.asarray(blocks[branch][name]["bias"]).any()
    patch = np.asarray(params["patch_embed"]["kernel"])
    assert np.abs(patch).max() <= 1 / 8 and np.abs(params["patch_embed"]["bias"]).max() <= 1 / 8
    np.testing.assert_allclose(patch.std(), 1 / 8 / 3**0.5, rtol=0.03)
    np.testing.assert_allclose(params["pos_embed"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(params["register_tokens"].std(), 1e-6, rtol=0.15)
    np.testing.assert_allclose(params["cls_token"].std(), 1e-6, rtol=0.3)
    assert not np.asarray(params["mask_token"]).any()
    np.testing.assert_array_equal(blocks["ls1"]["gamma"], np.full((4, 128), 1e-5, np.float32))


def test_gelu_equals_torch():
    x = np.linspace(-8, 8, 1001)
    expected = functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rate", "factor"), [(0.45, 10 / 5), (0.4, 10 / 6)])
def test_a_kept_crop_gets_its_branch_times_crops_over_kept(rate, factor):
    """Ten copies of one image in one block whose feed-forward branch is silenced: before the final norm each crop has
    moved by nothing, or by factor times what the attention branch gives without drop path."""
    config = dataclasses.replace(SMALL, depth=1, drop_path=rate)
    x = jnp.repeat(jnp.asarray(pixels(config, 1)), 10, axis=0)
    blocks = params_of(config)["blocks"]

    def tokens(silenced, keys=None):
        silent = {name: {"gamma": jnp.zeros_like(blocks[name]["gamma"])} for name in silenced}
        return np.asarray(forward(config, params_of(config) | {"blocks": blocks | silent}, x, keys=keys)["prenorm"])

    start = tokens(("ls1", "ls2"))
    plain = tokens(("ls2",)) - start
    moved = tokens(("ls2",), jax.random.split(jax.random.key(0), 1)) - start
    untouched = np.array([not m.any() for m in moved])
    assert untouched.sum() == 10 - round(10 / factor)
    np.testing.assert_allclose(moved[~untouched], factor * plain[~untouched], rtol=1e-4, atol=1e-6)


def gradient(config, params, x, keys):
    def loss(params):
        tokens = ViT(config).apply({"params": params}, x, drop_path_keys=keys)
        return jnp.sum(jnp.sin(tokens["cls"])) + jnp.mean(jnp.cos(tokens["patches"]))

    return jax.jit(jax.value_and_grad(loss))(params)


def test_scan_and_remat_change_nothing():
    base = dataclasses.replace(SMALL, depth=2, remat="none", drop_path=0.4)
    params, x, keys = params_of(base), pixels(base, 8), jax.random.split(jax.random.key(3), 2)
    expected = gradient(base, params, x, keys)
    for changes in (
        {"scan": False, "remat": "nothing_saveable"},
        {"remat": "qkv,attn_out,ffn_hidden"},
        {"remat": "dots_with_no_batch_dims_saveable,attn_out"},
    ):
        config = dataclasses.replace(base, **changes)
        assert jax.tree.map(jnp.shape, params_of(config)) == jax.tree.map(jnp.shape, params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
            gradient(config, params, x, keys),
            expected,
        )


def residuals(remat):
    """Bytes kept from the forward to the backward pass."""
    config = dataclasses.replace(SMALL, remat=remat)
    params, x = params_of(config), pixels(config, 2)

    def backward(params):
        return jax.vjp(lambda p: ViT(config).apply({"params": p}, x)["cls"], params)[1]

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(backward, params)))


def test_remat_keeps_less():
    dots = "dots_with_no_batch_dims_saveable"
    kept = [residuals(r) for r in ("none", f"{dots},attn_out", dots, "qkv,attn_out", "nothing_saveable")]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 5


def lowered(config, x, keys=None):
    return jax.jit(lambda p: ViT(config).apply({"params": p}, x, drop_path_keys=keys)["cls"]).lower(params_of(config))


def test_loop_or_no_loop_in_the_program():
    for scan in (True, False):
        config = dataclasses.replace(SMALL, scan=scan)
        text = lowered(config, pixels(config, 2)).compile().as_text()
        assert (" while(" in text) == scan


def test_bfloat16_is_close_to_float32():
    params, x = params_of(SMALL), pixels(SMALL, 4)
    exact, half = (
        jax.jit(ViT(dataclasses.replace(SMALL, dtype=dtype)).apply)({"params": params}, x)
        for dtype in ("float32", "bfloat16")
    )
    assert half["cls"].dtype == jnp.float32
    error = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max(initial=0)), exact, half)
    assert 0 < error["cls"] < 0.05 and error["patches"] < 0.05


def test_bias_and_layerscale_gradients_are_float32_sums():
    """20,000 tokens: a bfloat16 sum of ones stalls at 256, and bfloat16 has no 20,001."""
    x = jnp.ones((20_001, 1, 8), jnp.bfloat16)
    for module in (Dense(8, "bfloat16"), LayerScale(1.0)):
        arguments = (x,) if isinstance(module, Dense) else (x, 1.0)
        params = module.init(jax.random.key(0), *arguments)["params"]
        gradient = jax.grad(lambda p, m=module, a=arguments: m.apply({"params": p}, *a).astype(jnp.float32).sum())(
            params
        )
        np.testing.assert_array_equal(gradient["bias" if isinstance(module, Dense) else "gamma"], np.full(8, 20_001.0))


class TestDropPath:
    """Batch-subset drop path inside groups."""

    def test_subset_sizes(self):
        # floor(b (1 - p)), at least one; as DINOv2 computes it.
        cases = {(20, 0.4): 12, (32, 0.3): 22, (8, 0.4): 4, (2, 0.9): 1, (10, 0.1): 9, (16, 0.0): 16}
        assert {case: subset_size(*case) for case in cases} == cases

    def test_exact_number_uniform_and_scaled(self):
        def factors(key):
            out = on_subset(lambda x, factor: jnp.full_like(x, factor), jnp.zeros((30, 1, 1)), keys(key, 3), 0.4)
            return out.reshape(3, 10)

        def keys(key, groups):
            return jax.random.split(key, groups)

        drawn = np.asarray(jax.jit(jax.vmap(factors))(jax.random.split(jax.random.key(0), 400)))
        assert ((drawn > 0).sum(axis=2) == 6).all()
        np.testing.assert_allclose(drawn[drawn > 0], 10 / 6, rtol=1e-6)
        # 1,200 draws of 6 out of 10: each crop is kept 720 times, standard deviation 17.
        assert np.abs((drawn > 0).sum(axis=(0, 1)) - 720).max() < 5 * 17
        # 1,200 draws of 210 subsets hit nearly all of them.
        assert len(np.unique(drawn.reshape(-1, 10) > 0, axis=0)) > 195

    def test_branch_sees_the_kept_crops_and_their_group_key_only(self):
        x, keys = jnp.arange(20.0).reshape(20, 1, 1), jax.random.split(jax.random.key(5), 2)
        seen = []

        def branch(subset, factor):
            seen.append(subset)
            return subset * factor

        both = on_subset(branch, x, keys, 0.4)[:, 0, 0]
        assert seen[0].shape == (12, 1, 1)
        kept = np.asarray(seen[0][:, 0, 0], int)
        expected = np.arange(20.0)
        expected[kept] *= 1 + 10 / 6
        np.testing.assert_allclose(both, expected, rtol=1e-6)
        np.testing.assert_array_equal(both[10:], on_subset(branch, x[10:], keys[1:], 0.4)[:, 0, 0])

    def test_layers_and_branches_draw_apart(self):
        """All LayerScales but one silenced: the crops that move are the subset of that layer's branch."""
        config = dataclasses.replace(SMALL, depth=2, drop_path=0.5, remat="none")
        params, x, keys = params_of(config), pixels(config, 20), jax.random.split(jax.random.key(0), 1)

        @jax.jit
        def cls(gammas):
            blocks = {**params["blocks"], "ls1": {"gamma": gammas[0]}, "ls2": {"gamma": gammas[1]}}
            return ViT(config).apply({"params": {**params, "blocks": blocks}}, x, drop_path_keys=keys)["cls"]

        silent = np.zeros((2, 2, 32), np.float32)
        still, subsets = cls(silent), set()
        for branch, layer in np.ndindex(2, 2):
            gammas = silent.copy()
            gammas[branch, layer] = 1
            moved = np.abs(np.asarray(cls(gammas) - still)).max(axis=1) > 0
            assert moved.sum() == 10
            subsets.add(tuple(moved))
        assert len(subsets) == 4

    def test_off_without_keys_or_rate(self):
        config = dataclasses.replace(SMALL, drop_path=0.4)
        x = pixels(config, 4)
        keys = jax.random.split(jax.random.key(0), 1)
        zero = lowered(dataclasses.replace(SMALL, drop_path=0.0), x, keys).as_text()
        assert lowered(config, x).as_text() == zero != lowered(config, x, keys).as_text()

    @pytest.mark.parametrize("rate", [0.4, 0.75])
    def test_compute_is_skipped(self, rate):
        """Matmul FLOPs of the lowered blocks fall to s / g."""
        keys = jax.random.split(jax.random.key(0), 2)

        def flops(keys):
            config = dataclasses.replace(SMALL, depth=2, scan=False, remat="none", drop_path=rate)
            text = lowered(config, pixels(config, 40), keys).as_text()
            return sum(dot_flops(line) for line in text.splitlines() if "dot_general" in line)

        # The patch embedding is computed for every crop.
        embed = 2 * 40 * 16 * (4 * 4) * 32
        assert (flops(keys) - embed) / (flops(None) - embed) == pytest.approx(subset_size(20, rate) / 20, rel=1e-9)

    @pytest.mark.parametrize("positions", ["learned", "rope"])
    def test_no_collective_between_groups(self, positions):
        """On a mesh whose devices hold whole groups neither pass of drop path moves activations between devices."""
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        config = dataclasses.replace(SMALL, depth=2, drop_path=0.4, positions=positions)
        params, x, keys = params_of(config), pixels(config, 40), jax.random.split(jax.random.key(0), 8)

        def run(p, x, k, batch_spec):
            tokens, pull = jax.vjp(
                lambda x: ViT(config, batch_spec).apply({"params": p}, x, drop_path_keys=k)["cls"], x
            )
            return tokens, pull(jnp.ones_like(tokens))[0]

        expected = jax.jit(lambda *args: run(*args, None))(params, x, keys)
        with jax.set_mesh(mesh):
            split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
            sharded = jax.jit(
                lambda *args: run(*args, PartitionSpec("data")),
                in_shardings=(whole, split, split),
                out_shardings=split,
            )
            text = sharded.lower(params, x, keys).compile().as_text()
            for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
                assert f" {collective}(" not in text and f" {collective}-start(" not in text, collective
            for ours, truth in zip(sharded(params, x, keys), expected, strict=True):
                np.testing.assert_allclose(ours, truth, rtol=0, atol=2e-5)


def dot_flops(line):
    """FLOPs of one stablehlo.dot_general: 2 x output size x contracted size."""
    types = re.findall(r"tensor<([0-9x]*x[a-z]+[0-9]+)>", line.split(" : ")[-1])
    shapes = [[int(n) for n in dims.split("x")[:-1]] for dims in types]
    contracted = [int(n) for n in re.search(r"contracting_dims = \[([\d, ]*)\]", line).group(1).split(",")]
    return 2 * int(np.prod(shapes[-1])) * int(np.prod([shapes[0][d] for d in contracted]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads=3"),
        ({"image_size": 18}, "image_size=18"),
        ({"ffn": "glu"}, "ffn='glu'"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"attention": "flash"}, "attention='flash'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"interpolation": "bilinear"}, "interpolation='bilinear'"),
        ({"remat": "everything"}, "remat='everything'"),
        ({"remat": "none,attn_out"}, "remat='none,attn_out'"),
    ],
)
def test_mistakes_in_the_config_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        dataclasses.replace(SMALL, **changes)
    assert "\n" not in str(error.value)


def test_images_that_do_not_fit():
    variables = {"params": params_of(SMALL)}
    with pytest.raises(UserError, match="18 x 16 x 1"):
        ViT(SMALL).apply(variables, jnp.zeros((1, 18, 16, 1)))
    with pytest.raises(UserError, match="in_channels=1"):
        ViT(SMALL).apply(variables, jnp.zeros((1, 16, 16, 3)))
