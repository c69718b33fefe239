"""The names of a folder's tensors: a prefix of the module -> a prefix of the checkpoint. The longest one counts.

    this project's own, VITA-1.5, Qwen2   model.layers.0.*, model.vision_tower.vision_tower.*, model.mm_projector.*
    InternVL as published                 language_model.model.layers.0.*, vision_model.*, mlp1.*
    InternVL as transformers writes it    language_model.model.layers.0.*, vision_tower.*, multi_modal_projector.*
    InternVL, transformers' newer names   model.language_model.layers.0.*, model.vision_tower.*, lm_head.*

A tuple of prefixes means that the checkpoint has the rows of one tensor here in several: transformers splits the matrix
that makes q, k and v in the vision tower.

Test: ``pytest tests/files/test_internvl_folders.py``
"""

PREFIXES = {
    "decoder.": "model.",
    "decoder.lm_head.": "lm_head.",
    "vision.": "model.vision_tower.vision_tower.",
    "projector.": "model.mm_projector.",
    "audio.": "model.audio_encoder.",
}
_NESTED = {"decoder.": "language_model.model.", "decoder.lm_head.": "language_model.lm_head."}
PUBLISHED = PREFIXES | _NESTED | {"vision.": "vision_model.", "projector.": "mlp1."}
_EMBEDDINGS = {"class_embedding": "cls_token", "position_embedding": "position_embeddings"}
_EMBEDDINGS |= {"patch_embedding.": "patch_embeddings.projection."}
_LAYER = {"attn.proj.": "attention.projection_layer.", "norm1.": "layernorm_before.", "norm2.": "layernorm_after."}
_LAYER |= {"ls1": "lambda_1", "ls2": "lambda_2", "mlp.": "mlp."}
_PROJECTOR = {"0.": "layer_norm.", "1.": "linear_1.", "3.": "linear_2."}


def prefixes(config, files):
    """The table of a folder, recognised by the names of its tensors. ``files`` may be empty."""
    if config.vision is None:
        return PREFIXES
    starts = {name.partition(".")[0] for name in files} | {".".join(name.split(".", 2)[:2]) for name in files}
    if "vision_model" in starts:
        return PUBLISHED
    if "vision_tower" in starts:
        return _transformers(config, "", _NESTED)
    if "model.language_model" in starts:
        return _transformers(config, "model.", {"decoder.": "model.language_model.", "decoder.lm_head.": "lm_head."})
    return PREFIXES


def _transformers(config, start, decoder):
    """The table of transformers' names. All but those of the decoder begin with ``start``."""
    tower, projector = f"{start}vision_tower.", f"{start}multi_modal_projector."
    table = PREFIXES | decoder | {"vision.": tower, "projector.": projector}
    table |= {f"vision.embeddings.{own}": f"{tower}embeddings.{name}" for own, name in _EMBEDDINGS.items()}
    table |= {f"projector.{own}": projector + name for own, name in _PROJECTOR.items()}
    for i in range(config.vision.num_hidden_layers):
        own, layer = f"vision.encoder.layers.{i}.", f"{tower}encoder.layer.{i}."
        table |= {own + part: layer + name for part, name in _LAYER.items()}
        table[f"{own}attn.qkv."] = tuple(f"{layer}attention.{x}_proj." for x in "qkv")
    return table
