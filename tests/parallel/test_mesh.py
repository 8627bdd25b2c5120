"""Meshes and what fits on them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import BATCH, ParallelConfig, batch_shards, check_batch, local_rows, make_mesh


@pytest.mark.parametrize(("fsdp", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8)), (16, (1, 8))])
def test_fsdp_is_the_minor_axis(fsdp, shape):
    mesh = make_mesh(ParallelConfig(fsdp=fsdp, accumulation=1))
    assert mesh.devices.shape == shape and mesh.axis_names == ("data", "fsdp")
    assert batch_shards(mesh) == 8
    # Neighbors, as the devices of a node are, hold one copy of the state.
    ids = [[d.id for d in row] for row in mesh.devices]
    assert ids == np.arange(8).reshape(shape).tolist()


def test_fsdp_that_does_not_divide_is_an_error_with_what_does():
    with pytest.raises(UserError, match=r"3 does not divide the 8 devices; write one of \[1, 2, 4, 8\]"):
        make_mesh(ParallelConfig(fsdp=3, accumulation=1))


class Chip:
    """As much of a TPU of several slices as a mesh asks for."""

    platform, device_kind, num_slices = "cpu", "v", 2

    def __init__(self, number: int):
        self.id, self.process_index, self.slice_index = number, number // 4, number // 4


def test_a_copy_of_the_state_stays_within_a_slice():
    chips = [Chip(i) for i in range(8)]
    with pytest.raises(UserError, match="4 devices of a slice"):
        make_mesh(ParallelConfig(fsdp=8, accumulation=1), chips)


def test_batches_that_fit():
    for batch in (128, 256):
        check_batch(batch, group_size=16, accumulation=1, shards=8)
    for batch, accumulation, words in (
        (130, 1, "write 128 or 256"),
        (100, 1, "write 128"),
        (128, 2, "write 256, or config.data.group_size=8"),
        (192, 1, "write 128 or 256, or config.data.group_size=12"),
    ):
        with pytest.raises(UserError, match=words) as e:
            check_batch(batch, group_size=16, accumulation=accumulation, shards=8)
        assert "\n" not in str(e.value)


def test_every_row_has_its_process():
    mesh = make_mesh(ParallelConfig(fsdp=2, accumulation=1))
    np.testing.assert_array_equal(local_rows(16, mesh), np.arange(16))
    # Rows of a shard are neighbors, so groups stay together.
    pieces = NamedSharding(mesh, BATCH).devices_indices_map((16,))
    assert [pieces[d][0] for d in jax.devices()] == [slice(2 * i, 2 * i + 2) for i in range(8)]
