"""What was handed out never changes, whoever keeps how little of it; what nobody keeps is used again."""

import gc
import pickle

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.crops.canvases import Canvases
from tests.data.crops.test_batches import BATCH, config, open_stream
from tests.data.small_corpus import write_small_corpus

SIDE = 16


def filled(canvases: Canvases, value: int) -> np.ndarray:
    block = canvases.take()
    for number in range(4):
        block.row(number, SIDE, SIDE)[:] = value
    return canvases.lend(block)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE), st.booleans()), min_size=1, max_size=40))
def test_a_used_canvas_is_a_fresh_one_outside_of_the_slice(uses):
    """Also where writing a slice broke off, and another one was written instead."""
    canvases, rng, block = Canvases(2, SIDE, 1), np.random.default_rng(0), None
    for height, width, broken in uses:
        block = canvases.take() if block is None else block
        pixels = rng.integers(1, 1000, (height, width)).astype(np.int16)
        part = block.row(1, height, width)
        if broken:
            part[: (height + 1) // 2] = 7
            continue
        part[:] = pixels
        expected = np.zeros((2, SIDE, SIDE), np.int16)
        expected[1, :height, :width] = pixels
        np.testing.assert_array_equal(canvases.lend(block), expected)
        block = None


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    """Neither the array nor a view of it."""
    canvases = Canvases(4, SIDE, 8)
    array = filled(canvases, 1)
    first = address(array)
    kept = array[2:][:, 3:5].view(np.uint16)[1, ::-1].T[2:]  # a view of views, far from what was handed out
    del array
    gc.collect()
    others = [filled(canvases, 2 + n) for n in range(5)]
    assert first not in map(address, others) and len(set(map(address, others))) == 5
    assert (kept == 1).all()
    del kept
    assert address(filled(canvases, 9)) == first


def test_at_most_the_idle_blocks_are_kept_and_none_is_pickled():
    """The rest is freed."""
    canvases = Canvases(4, SIDE, 2)
    several = [filled(canvases, n) for n in range(5)]
    del several
    assert len(canvases._idle) == 2
    other = pickle.loads(pickle.dumps(canvases))
    assert not other._idle and filled(other, 3).shape == (4, SIDE, SIDE)


def test_what_is_handed_out_is_read_only():
    """So that no batch ever changes."""
    array = filled(Canvases(4, SIDE, 2), 5)
    assert not array.flags.writeable and not array[1].flags.writeable and (array == 5).all()


def test_batches_that_are_kept_never_change(tmp_path):
    """All of them, or one row of each; threads make the others meanwhile, and take up the memory of those let go."""
    write_small_corpus(tmp_path / "c", series=8)
    kept, rows, copies, addresses = [], [], [], []
    with open_stream(config(tmp_path / "c", num_threads=3, prefetch=3), stop=60) as stream:
        for step, batch in enumerate(stream):
            copies.append(batch["slices"].copy())
            addresses.append(address(batch["slices"]))
            if step % 5 == 0:
                kept.append(batch["slices"])
            elif step % 5 == 1:
                rows.append(batch["slices"][step % BATCH, 3:])
    for number, array in enumerate(kept):
        np.testing.assert_array_equal(array, copies[5 * number])
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row, copies[5 * number + 1][(5 * number + 1) % BATCH, 3:])
    assert len(set(addresses)) < 60  # or this showed nothing


def test_device_arrays_keep_their_values_when_more_batches_are_drawn(tmp_path):
    """JAX takes the memory of a batch on a CPU as it is, and may still be reading when Python has let go of it."""
    write_small_corpus(tmp_path / "c", series=8)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @jax.jit
    def slow(x):  # 100 times the sum of each slice
        turned = lambda i, total: total + jnp.roll(x, i, 1).astype(jnp.int32).sum((1, 2))  # noqa: E731
        return jax.lax.fori_loop(0, 100, turned, jnp.zeros(len(x), jnp.int32))

    on_device, results, copies, aliased = [], [], [], 0
    with open_stream(config(tmp_path / "c"), stop=40) as stream:
        for step, batch in enumerate(stream):
            copies.append(batch["slices"].copy())
            array = jax.make_array_from_process_local_data(sharding, batch["slices"])
            aliased += array.addressable_shards[0].data.unsafe_buffer_pointer() == address(batch["slices"])
            results.append(slow(array))
            if step % 4 == 0:
                on_device.append(array)
            del array, batch
    assert aliased == 40
    for number, array in enumerate(on_device):
        np.testing.assert_array_equal(array, copies[4 * number])
    for result, copy in zip(results, copies, strict=True):
        np.testing.assert_array_equal(result, 100 * copy.astype(np.int32).sum((1, 2)))
