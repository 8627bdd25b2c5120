"""The names and layouts of parameters on disk, as every release of transformers reads and writes them."""

from curia2_jax.models.vit import ViTConfig

# Ours -> theirs; {i} is the block, and a block parameter of ours has all blocks on axis 0.
DINOV2 = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed/kernel": "embeddings.patch_embeddings.projection.weight",
    "patch_embed/bias": "embeddings.patch_embeddings.projection.bias",
    "norm/scale": "layernorm.weight",
    "norm/bias": "layernorm.bias",
    "blocks/norm1/scale": "encoder.layer.{i}.norm1.weight",
    "blocks/norm1/bias": "encoder.layer.{i}.norm1.bias",
    "blocks/norm2/scale": "encoder.layer.{i}.norm2.weight",
    "blocks/norm2/bias": "encoder.layer.{i}.norm2.bias",
    "blocks/attn/query/kernel": "encoder.layer.{i}.attention.attention.query.weight",
    "blocks/attn/query/bias": "encoder.layer.{i}.attention.attention.query.bias",
    "blocks/attn/key/kernel": "encoder.layer.{i}.attention.attention.key.weight",
    "blocks/attn/key/bias": "encoder.layer.{i}.attention.attention.key.bias",
    "blocks/attn/value/kernel": "encoder.layer.{i}.attention.attention.value.weight",
    "blocks/attn/value/bias": "encoder.layer.{i}.attention.attention.value.bias",
    "blocks/attn/out/kernel": "encoder.layer.{i}.attention.output.dense.weight",
    "blocks/attn/out/bias": "encoder.layer.{i}.attention.output.dense.bias",
    "blocks/ls1/gamma": "encoder.layer.{i}.layer_scale1.lambda1",
    "blocks/ls2/gamma": "encoder.layer.{i}.layer_scale2.lambda1",
    "blocks/ffn/fc1/kernel": "encoder.layer.{i}.mlp.fc1.weight",
    "blocks/ffn/fc1/bias": "encoder.layer.{i}.mlp.fc1.bias",
    "blocks/ffn/fc2/kernel": "encoder.layer.{i}.mlp.fc2.weight",
    "blocks/ffn/fc2/bias": "encoder.layer.{i}.mlp.fc2.bias",
    # Gate and up are the two halves of one matrix there.
    "blocks/ffn/gate/kernel": "encoder.layer.{i}.mlp.weights_in.weight",
    "blocks/ffn/up/kernel": "encoder.layer.{i}.mlp.weights_in.weight",
    "blocks/ffn/gate/bias": "encoder.layer.{i}.mlp.weights_in.bias",
    "blocks/ffn/up/bias": "encoder.layer.{i}.mlp.weights_in.bias",
    "blocks/ffn/down/kernel": "encoder.layer.{i}.mlp.weights_out.weight",
    "blocks/ffn/down/bias": "encoder.layer.{i}.mlp.weights_out.bias",
}
DINOV3 = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed/kernel": "embeddings.patch_embeddings.weight",
    "patch_embed/bias": "embeddings.patch_embeddings.bias",
    "norm/scale": "norm.weight",
    "norm/bias": "norm.bias",
    "blocks/norm1/scale": "layer.{i}.norm1.weight",
    "blocks/norm1/bias": "layer.{i}.norm1.bias",
    "blocks/norm2/scale": "layer.{i}.norm2.weight",
    "blocks/norm2/bias": "layer.{i}.norm2.bias",
    "blocks/attn/query/kernel": "layer.{i}.attention.q_proj.weight",
    "blocks/attn/query/bias": "layer.{i}.attention.q_proj.bias",
    "blocks/attn/key/kernel": "layer.{i}.attention.k_proj.weight",
    "blocks/attn/value/kernel": "layer.{i}.attention.v_proj.weight",
    "blocks/attn/value/bias": "layer.{i}.attention.v_proj.bias",
    "blocks/attn/out/kernel": "layer.{i}.attention.o_proj.weight",
    "blocks/attn/out/bias": "layer.{i}.attention.o_proj.bias",
    "blocks/ls1/gamma": "layer.{i}.layer_scale1.lambda1",
    "blocks/ls2/gamma": "layer.{i}.layer_scale2.lambda1",
    "blocks/ffn/fc1/kernel": "layer.{i}.mlp.up_proj.weight",
    "blocks/ffn/fc1/bias": "layer.{i}.mlp.up_proj.bias",
    "blocks/ffn/fc2/kernel": "layer.{i}.mlp.down_proj.weight",
    "blocks/ffn/fc2/bias": "layer.{i}.mlp.down_proj.bias",
    "blocks/ffn/gate/kernel": "layer.{i}.mlp.gate_proj.weight",
    "blocks/ffn/gate/bias": "layer.{i}.mlp.gate_proj.bias",
    "blocks/ffn/up/kernel": "layer.{i}.mlp.up_proj.weight",
    "blocks/ffn/up/bias": "layer.{i}.mlp.up_proj.bias",
    "blocks/ffn/down/kernel": "layer.{i}.mlp.down_proj.weight",
    "blocks/ffn/down/bias": "layer.{i}.mlp.down_proj.bias",
}


def name_of(path: str, model: ViTConfig) -> str:
    return (DINOV3 if model.rotary else DINOV2)[path]


def is_half(path: str, model: ViTConfig) -> bool:
    """Whether a parameter of ours is a half of one of theirs."""
    return ("/gate/" in path or "/up/" in path) and not model.rotary


def axes(path: str) -> tuple[int, ...]:
    """How one block's array of ours is transposed for PyTorch."""
    if path == "patch_embed/kernel":
        return (3, 2, 0, 1)  # (P, P, C, D) -> (D, C, P, P)
    if path.endswith("/kernel"):
        return (1, 0)
    return tuple(range({"cls_token": 3, "pos_embed": 3, "register_tokens": 3, "mask_token": 2}.get(path, 1)))
