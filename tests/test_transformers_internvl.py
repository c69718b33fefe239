"""A second opinion: small InternVL folders that ``transformers`` has written give its features, logits and tokens here."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vita_ref import Vita

transformers = pytest.importorskip("transformers")

CONTEXT, VOCAB = 90, 97
QWEN2 = {"model_type": "qwen2"}
QWEN3 = {"model_type": "qwen3", "head_dim": 10}
TEXT = {"vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 52, "num_hidden_layers": 3, "num_attention_heads": 6}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 500.0}
VISION = {"hidden_size": 20, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 5}
VISION |= {"image_size": [28, 28], "patch_size": [7, 7]}


def write(folder, text=QWEN2, tied=False, **vision):
    """An InternVL with random weights, written by `save_pretrained`."""
    config = transformers.InternVLConfig(
        text_config=TEXT | text | {"tie_word_embeddings": tied},
        vision_config=VISION | {"attention_bias": True} | vision,
        image_token_id=CONTEXT,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    theirs = transformers.InternVLForConditionalGeneration(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for parameter in theirs.parameters():
        parameter.uniform_(-0.6, 0.6, generator=generator)
    theirs.save_pretrained(folder)
    return theirs


def rename(folder, newer):
    """Gives the tensors of a folder the newer names or the older ones. Returns whether any had other names."""
    file = folder / "model.safetensors"
    tensors, renamed = load_file(file), {}
    for name, tensor in tensors.items():
        plain = name.removeprefix("model.").replace("language_model.model.", "language_model.").replace("language_model.lm_", "lm_")
        decoder = plain.startswith("language_model.")
        old = plain.replace("language_model.", "language_model.model.", 1) if decoder else plain.replace("lm_head", "language_model.lm_head")
        renamed[("" if plain.startswith("lm_head") else "model.") + plain if newer else old] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
    return renamed.keys() != tensors.keys()


def compare(folder, theirs):
    """Features, logits and greedy tokens of a prompt with two pictures, of two tiles and one."""
    vita = Vita.from_pretrained(folder)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    around, runs = [[3, 4, 5], [6, 7], [8, 9, 10]], ([CONTEXT] * 8, [CONTEXT] * 4)
    full = torch.tensor([[*around[0], *runs[0], *around[1], *runs[1], *around[2]]])
    index = vita.config.image_token_index
    short, images = torch.tensor([[*around[0], index, *around[1], index, *around[2]]]), [pixels[:2], pixels[2:]]
    with torch.no_grad():
        out = theirs(input_ids=full, pixel_values=pixels)
        features = theirs.model.get_image_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="default")
        assert (vita.encode_images(pixels) - features.pooler_output).abs().max() < 1e-4
        assert (vita(short, images=images).logits - out.logits).abs().max() < 1e-4
    want = theirs.generate(input_ids=full, pixel_values=pixels, max_new_tokens=24, do_sample=False, pad_token_id=0)
    got = vita.generate(short, images=images, max_new_tokens=24, eos_token_id=())
    assert got.tolist() == want[:, -24:].tolist()
    return vita


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_old_and_new_names_give_their_features_logits_and_tokens(tmp_path, text, tied):
    theirs, changed = write(tmp_path, text, tied), []
    for newer in (False, True):
        changed.append(rename(tmp_path, newer))
        vita = compare(tmp_path, theirs)
        assert vita.config.decoder.tie_word_embeddings == tied
    assert changed[1]  # the second names are others than the first


def test_a_vision_tower_without_biases_of_q_k_and_v_is_theirs(tmp_path):
    theirs = write(tmp_path, attention_bias=False)
    assert compare(tmp_path, theirs).vision.encoder.layers[0].attn.qkv.bias is None


def test_a_config_without_optional_keys_has_their_defaults(tmp_path):
    write(tmp_path, tied=True)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    optional = ("rms_norm_eps", "rope_theta", "rope_parameters", "hidden_act", "tie_word_embeddings", "model_type")
    for part in (raw["text_config"], raw["vision_config"], raw):
        for key in (*optional, "layer_norm_eps", "norm_type", "use_mean_pooling", "downsample_ratio", "projector_hidden_act"):
            part.pop(key, None)
    path.write_text(json.dumps(raw | {"model_type": "internvl"}))
    compare(tmp_path, transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path).eval())


def test_dynamic_scaling_gives_their_logits_up_to_the_longest_text(tmp_path):
    write(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["text_config"]["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}
    path.write_text(json.dumps(raw))
    vita, theirs = Vita.from_pretrained(tmp_path), transformers.InternVLForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = torch.randint(CONTEXT, (1, 128), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (vita(ids).logits - theirs(input_ids=ids).logits).abs().max() < 1e-4
