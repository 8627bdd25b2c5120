"""Reading compiled programs: products and collectives that are known beforehand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from curia2_jax.parallel.mesh import ParallelConfig, make_mesh
from curia2_jax.planning import hlo

MESH = make_mesh(ParallelConfig(fsdp=4, accumulation=1))


def array(shape, *spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, P(*spec)))


def test_products_in_a_loop_count_every_time():
    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((7, 64, 64), jnp.float32)
    text = jax.jit(loop).lower(x, w).compile().as_text()
    assert hlo.total_flops(text) == 7 * 2 * 32 * 64 * 64
    batched = jax.jit(lambda a, b: jnp.einsum("bij,bjk->bik", a, b))
    a, b = jax.ShapeDtypeStruct((5, 16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 8), jnp.float32)
    assert hlo.total_flops(batched.lower(a, b).compile().as_text()) == 2 * 5 * 16 * 32 * 8


def test_collectives_by_kind_bytes_and_group():
    shard = functools.partial(jax.shard_map, mesh=MESH, check_vma=False)
    x = array((8, 128), ("data", "fsdp"))
    cases = {
        "all-gather": (lambda v: jax.lax.all_gather(v, "fsdp", tiled=True), P("data"), 4 * 128 * 4, 4),
        "all-reduce": (lambda v: jax.lax.psum(v, ("data", "fsdp")), P(), 128 * 4, 8),
        "reduce-scatter": (
            lambda v: jax.lax.psum_scatter(v, "fsdp", scatter_dimension=1, tiled=True), P("data", "fsdp"), 128 * 4, 4
        ),
        "all-to-all": (
            lambda v: jax.lax.all_to_all(v, "fsdp", 1, 0, tiled=True), P(("data", "fsdp")), 128 * 4, 4
        ),
        "collective-permute": (
            lambda v: jax.lax.ppermute(v, "data", [(0, 1), (1, 0)]), P(("data", "fsdp")), 128 * 4, 2
        ),
    }  # fmt: skip
    wire = {"all-gather": 3 / 4, "all-reduce": 2 * 7 / 8, "reduce-scatter": 3 / 4, "all-to-all": 3 / 4,
            "collective-permute": 1}  # fmt: skip
    for kind, (function, out, size, group) in cases.items():
        text = jax.jit(shard(function, in_specs=P(("data", "fsdp")), out_specs=out)).lower(x).compile().as_text()
        (found,) = [o for o in hlo.operations(text) if o.kind in hlo.COLLECTIVES]
        assert (found.kind, found.times, found.bytes, found.group, found.dtypes) == (kind, 1, size, group, ("f32",))
        assert hlo.collectives(text) == {kind: {"count": 1, "runs": 1, "bytes": size}}
        sent = hlo.wire_bytes(text)
        assert sent.pop(kind) == pytest.approx(size * wire[kind]) and not any(sent.values())


TPU = """HloModule m
%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[]{:T(128)}, bf16[64,64]{1,0}) parameter(0)
  %shard = bf16[16,64]{1,0} get-tuple-element(%p), index=1
  %f1 = bf16[64,64]{1,0} fusion(%shard), kind=kCustom, calls=%fused.1
  %f2 = bf16[64,64]{1,0} fusion(%shard), kind=kCustom, calls=%fused.2
  %all-reduce-scatter.1 = bf16[16,64]{1,0} fusion(%f2), kind=kCustom, calls=%all-reduce-scatter
}
%fused.1 (a: bf16[16,64]) -> bf16[64,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  ROOT %g.1 = bf16[64,64]{1,0} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
}
%fused.2 (a: bf16[16,64], b: bf16[64,64]) -> bf16[64,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %g.2 = bf16[64,64]{1,0} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %c = bf16[64,64]{1,0} convolution(%b, %g.2), dim_labels=bf_io->bf
}
%all-reduce-scatter (x: bf16[64,64]) -> bf16[16,64] {
  %x = bf16[64,64]{1,0} parameter(0)
  %r = bf16[64,64]{1,0} all-reduce(%x), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %s = bf16[16,64]{1,0} dynamic-slice(%r), dynamic_slice_sizes={16,64}
}
%condition (p: (s32[], bf16[64,64])) -> pred[] {
  %n = s32[]{:T(128)} constant(24)
  %p = (s32[]{:T(128)}, bf16[64,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[64,64]{1,0}) tuple(%a)
  %w = (s32[]{:T(128)}, /*index=1*/bf16[64,64]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_what_tpus_write():
    """A collective spread over fusions is one; all-reduce and slice in one fusion are a reduce-scatter; products are
    convolutions; the trip count stands in the condition."""
    assert hlo.collectives(TPU) == {
        "all-gather": {"count": 1, "runs": 24, "bytes": 24 * 64 * 64 * 2},
        "reduce-scatter": {"count": 1, "runs": 24, "bytes": 24 * 64 * 64 * 2},
    }
    assert {o.group for o in hlo.operations(TPU) if o.kind != "dot"} == {4}
    assert hlo.total_flops(TPU) == 24 * 2 * 64**3


GPU = """HloModule m, entry_computation_layout={()->f32[]}
%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %p = (s32[], bf16[64,64]{1,0}) parameter(0)
  %a = bf16[8,64]{1,0} fusion(%p), kind=kLoop, calls=%cut
  %gather = ((bf16[8,64]{1,0}, bf16[4]{0}), (bf16[64,64]{1,0}, /*index=1*/bf16[32]{0})) all-gather-start(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0'}, dimensions={0}
  %done = (bf16[64,64]{1,0}, bf16[32]{0}) all-gather-done(%gather)
  %turn = ((bf16[2,4]{1,0}), bf16[2,4]{1,0}) all-to-all-start(%c), channel_id=2, replica_groups={{0,1}}, dimensions={0}
  %turned = bf16[2,4]{1,0} all-to-all-done(%turn)
  %add = f32[10]{0} all-reduce-start(%d), channel_id=3, replica_groups=[2,8]<=[16], to_apply=%sum
  %added = f32[10]{0} all-reduce-done(%add)
  %x = f32[16]{0} bitcast(%d)
  %scatter = ((f32[16]{0}), f32[2]{0}) reduce-scatter-start(%x), channel_id=4, replica_groups=[2,8]<=[16], to_apply=%sum
  %f = (bf16[8,258,64]{2,1,0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax", backend_config={}
}
%condition (p: (s32[], bf16[64,64])) -> pred[] {
  ROOT %lt = pred[] parameter(0)
}
ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %w = (s32[], bf16[64,64]{1,0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %f = (bf16[8,258,64]{2,1,0}, u8[0]{0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax", backend_config={}
}
"""  # noqa: E501


def test_what_gpus_write():
    """What starts a collective holds its operands beside its results, and one may gather several arrays."""
    sizes = {"all-gather": 64 * 64 * 2 + 32 * 2, "all-reduce": 40, "reduce-scatter": 64, "all-to-all": 16}
    assert hlo.collectives(GPU) == {kind: {"count": 1, "runs": 12, "bytes": 12 * n} for kind, n in sizes.items()}
    assert {o.kind: o.group for o in hlo.operations(GPU)} == dict.fromkeys(sizes, 8) | {"all-to-all": 2}
    assert hlo.custom_calls(GPU) == {"__cudnn$fmhaSoftmax": 12 + 1}
