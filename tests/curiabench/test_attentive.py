"""Attentive pooling against its formula in NumPy, and what the probe finds."""

import numpy as np
import torch

from curia2_jax.curiabench.heads import attentive


def volumes(n, width=6, seed=0, longest=7):
    """Volumes of one to `longest` tokens, two a slice."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n)
    tokens = [rng.normal(size=(length, width)).astype(np.float32) for length in lengths]
    return tokens, [np.arange(length) // 2 for length in lengths]


def formula(pool, tokens, slices, padding=0):
    """One volume in float64, by the definitions of attention and of a layer's norm. `padding`: how many tokens that are
    zero at first the query reads as well."""
    p = {name: value.detach().double().numpy() for name, value in pool.named_parameters()}
    width = tokens.shape[1]

    def attend(name, query, keys):
        weight, bias = p[f"{name}.in_proj_weight"].reshape(3, width, width), p[f"{name}.in_proj_bias"].reshape(3, width)
        q, k, v = (x @ w.T + b for x, w, b in zip((query, keys, keys), weight, bias, strict=True))
        share = np.exp(q @ k.T / np.sqrt(width))
        read = share / share.sum(1, keepdims=True) @ v
        return read @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]

    def norm(name, x):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * p[f"{name}.weight"] + p[f"{name}.bias"]

    place = np.array([[(np.sin, np.cos)[c % 2](s / 1e4 ** (c // 2 * 2 / width)) for c in range(width)] for s in slices])
    x = tokens + place
    all_of_it = np.concatenate([x, np.zeros((padding, width))])
    x = norm("self_norm", all_of_it + attend("self_attention", all_of_it, x))
    query = p["query"][0]
    return (
        norm("cross_norm", query + attend("cross_attention", query, x)).mean(0) @ p["linear.weight"].T
        + p["linear.bias"]
    )


def moved_pool():
    """A pool whose biases have moved from zero, as they have after a step."""
    torch.manual_seed(0)
    pool = attentive.AttentivePool(6, 3)
    for value in pool.parameters():
        value.data += 0.3 * torch.randn(value.shape)
    return pool


def test_the_block_is_its_formula_whatever_the_padding():
    tokens, slices = volumes(5)
    pool = moved_pool()
    got = pool(attentive.sequences(tokens, slices)).detach()
    np.testing.assert_allclose(got, [formula(pool, *one) for one in zip(tokens, slices, strict=True)], atol=2e-5)


def test_padding_is_read_where_it_is_asked_for_as_the_public_trainer_does():
    """By its formula: then what is said of a volume depends on the longest one beside it."""
    tokens, slices = volumes(5)
    pool = moved_pool()
    pool.reads_padding = True
    batch = attentive.sequences(tokens, slices)
    empty = [int(batch.lengths.max()) - len(one) for one in tokens]
    got = pool(batch).detach()
    expected = [formula(pool, *one) for one in zip(tokens, slices, empty, strict=True)]
    np.testing.assert_allclose(got, expected, atol=2e-5)
    without = [formula(pool, *one) for one in zip(tokens, slices, strict=True)]
    assert max(empty) > 0 and np.abs(np.subtract(expected, without))[np.array(empty) > 0].max() > 1e-3


def test_the_probe_finds_one_telling_token_among_many_and_repeats(monkeypatch):
    """Which a mean over tokens would dilute; the answer to a volume does not depend on the others."""
    monkeypatch.setattr(attentive, "SEEDS", 1)
    monkeypatch.setattr(attentive, "MIN_STEPS", 200)
    tokens, slices = volumes(96, longest=9)
    targets = np.arange(96) % 2
    for one, label in zip(tokens, targets, strict=True):
        one[-1] = 4 * (2 * label - 1)
    train, test = attentive.sequences(tokens[:64], slices[:64]), attentive.sequences(tokens[64:], slices[64:])
    got = attentive.attentive_probe(train, targets[:64], test, 2)
    assert (got.outputs.argmax(1) == targets[64:]).mean() > 0.95
    alone = attentive.sequences(tokens[64:65], slices[64:65])
    again = attentive.attentive_probe(train, targets[:64], alone, 2)
    np.testing.assert_allclose(again.outputs[0], got.outputs[0], atol=1e-5)


def test_numbers_are_learned_too(monkeypatch):
    monkeypatch.setattr(attentive, "SEEDS", 2)
    monkeypatch.setattr(attentive, "MIN_STEPS", 150)
    tokens, slices = volumes(64, longest=3)
    targets = 70 + 9 * np.array([one.mean() for one in tokens])
    batch = attentive.sequences(tokens, slices)
    got = attentive.attentive_probe(batch, targets, batch, 1)
    assert got.settings["spread_over_seeds"] > 0
    assert got.outputs.shape == (64,) and np.corrcoef(got.outputs, targets)[0, 1] > 0.8
