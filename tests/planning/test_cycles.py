"""The table of a compiled step's time by part, on a program whose every cycle is known."""

import dataclasses

import pytest

from curia2_jax.planning import chips, cycles

CHIP = dataclasses.replace(chips.chip("v5e"), clock=1e6, flops=1e9, bandwidth=1e6)
STEP = "jit(train_step)/transpose(jvp(ViT))/while/body/closed_call/checkpoint/blocks"
PROGRAM = """HloModule m
%moved (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} transpose(%a), dimensions={0}
  ROOT %c = bf16[8]{0} convert(%b), metadata={op_name="x"}, backend_config={"estimated_cycles":"999999"}
}
%product (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} copy(%a)
  ROOT %c = f32[8]{0} multiply(%a, %b)
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %up = f32[8]{0} fusion(%p), calls=%product, metadata={op_name="STEP/ffn/up/dot"}, backend_config={"estimated_cycles":"3000"}
  %turn = bf16[8]{0} fusion(%up), calls=%moved, metadata={op_name="STEP/ffn/up/add"}, backend_config={"estimated_cycles":"1000"}
  %q = f32[8]{0} fusion(%p), calls=%product, metadata={op_name="STEP/attn/query/dot"}, backend_config={"estimated_cycles":"500"}
  %norm = f32[8]{0} fusion(%p), calls=%product, metadata={op_name="STEP/norm1/sub"}, backend_config={"estimated_cycles":"250"}
  %k = f32[8]{0} custom-call(%q), custom_call_target="tpu_custom_call", metadata={op_name="STEP/attn/attention_forward"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"2000000","transcendentals":"1","bytes_accessed":"5000","remote_bytes_transferred":"0"}}}
}
%condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %lt = pred[] fusion(%p), calls=%product, backend_config={"estimated_cycles":"77"}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %s = f32[8]{0} fusion(%w), calls=%product, metadata={op_name="jit(train_step)/targets/exp"}, backend_config={"estimated_cycles":"400"}
  ROOT %c = f32[8]{0} copy(%s), backend_config={"estimated_cycles":"100"}
}
""".replace("STEP", STEP)  # noqa: E501


def test_cycles_by_part():
    """Loops multiply; a fusion counts once and as movement only if nothing in it computes; a kernel is its roofline."""
    rows = {row["part of the step"]: row for row in cycles.table(PROGRAM, CHIP)}
    expected = {
        "feed-forward": (24 * 4.0, 24 * 1.0),
        "attention projections": (24 * 0.5, 0.0),
        "LayerNorm": (24 * 0.25, 0.0),
        "prototypes": (0.4, 0.0),
        "optimizer and the rest": (0.1, 0.1),
        cycles.KERNELS: (24 * 5.0, 0.0),  # 2 ms of products at the peak, 5 ms of bytes
    }
    found = {name: (row["ms"], row["ms of it bare moves"]) for name, row in rows.items()}
    assert {k: pytest.approx(v) for k, v in expected.items()} == {k: v for k, v in found.items() if k != "all"}
    assert rows["all"]["ms"] == pytest.approx(sum(ms for ms, _ in expected.values()))
    assert sum(row["share"] for row in rows.values()) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("jit(train_step)/jvp(ViT)/while/body/checkpoint/blocks/ffn/gate/dot_general", "feed-forward"),
        ("jit(train_step)/ViT/while/body/blocks/attn/out/dot_general", "attention projections"),
        ("jit(train_step)/ViT/while/body/blocks/attn/reduce_max", "attention"),
        ("jit(train_step)/transpose(jvp(ViT))/while/body/blocks/norm2/mul", "LayerNorm"),
        ("jit(train_step)/jvp(ViT)/while/body/blocks/vmap()/scatter-add", "LayerScale, residual, drop path"),
        ("jit(train_step)/jvp(ViT)/patch_embed/dot_general", "embedding and final norm"),
        ("jit(train_step)/transpose(jvp(ViT))/norm/mul", "embedding and final norm"),
        ("jit(train_step)/transpose(jvp(DINOHead))/mlp_1/dot_general", "heads"),
        ("jit(train_step)/jvp(term_dino)/while/body/snd,dk->snk/dot_general", "prototypes"),
        ("jit(train_step)/transpose(jvp(term_sigreg))/while/body/cos", "SigReg or KoLeo"),
        ("jit(train_step)/augment/bvrs,bst->bvrt/dot_general", "crops and augmentation"),
        ("jit(train_step)/sqrt", "optimizer and the rest"),
        ("", "optimizer and the rest"),
    ],
)
def test_parts_by_scope(source, part):
    assert cycles.part_of(source) == part


def test_clocks_are_those_at_which_the_matrix_units_reach_the_peak():
    for name, units, side in (("v5e", 4, 128), ("v5p", 8, 128), ("v6e", 4, 256)):
        assert chips.chip(name).clock * units * side**2 * 2 == pytest.approx(chips.chip(name).flops, rel=0.005)
    assert all(chips.chip(name).clock == 0 for name in ("a100", "h100", "h200", "b200"))
