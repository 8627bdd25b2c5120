"""Cycles of a program: loops multiply, moves are told apart, kernels count by what they declare."""

import dataclasses

import pytest

from curia2_jax.planning import chips, cycles

TEXT = """HloModule jit_step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %dot.1 = f32[8]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(step)/blocks/ffn/gate/dot_general"}, backend_config={"estimated_cycles":"1000"}
  %copy.1 = f32[8]{0} copy(%dot.1), metadata={op_name="jit(step)/blocks/ffn/gate/dot_general"}, backend_config={"estimated_cycles":"500"}
  %kernel.1 = f32[8]{0} custom-call(%copy.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/blocks/attn/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"2000000","transcendentals":"5","bytes_accessed":"1000"}}}
  ROOT %out = (s32[], f32[8]) tuple(%p, %kernel.1)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]) parameter(0)
  ROOT %less = pred[] compare(%p, %p), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %loop = (s32[], f32[8]) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  ROOT %norm = f32[8]{0} fusion(%loop), kind=kLoop, metadata={op_name="jit(step)/optimizer/add"}, backend_config={"estimated_cycles":"3000"}
}
"""  # noqa: E501


def test_a_table_of_a_program_with_a_loop():
    """At 1 MHz a thousand cycles are a millisecond; 24 runs of the loop; 2 MFLOP at 1 GFLOP/s are two more."""
    chip = dataclasses.replace(chips.chip("v5e"), clock=1e6, flops=1e9, bandwidth=1e9)
    rows = {row.category: row for row in cycles.table(TEXT, chip)}
    assert rows["feed-forward"][1:] == pytest.approx((24 * 1.5, 24 * 0.5))
    assert rows["optimizer and the rest"][1:] == pytest.approx((3.0, 0.0))
    assert rows["attention kernels, by what they declare"].ms == pytest.approx(24 * 2.0)
    assert rows["sum"][1:] == pytest.approx((24 * 3.5 + 3.0, 24 * 0.5))
