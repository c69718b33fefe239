"""The config dataclasses: derived sizes, sizes that cannot be, and the presets of known models."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch

from vita_ref import Vita, VitaConfig
from vita_ref.config import CodecConfig, DecoderConfig, SpeechConfig, VisionConfig
from vita_ref.files.checkpoint import find_tensors, module_names, read_shapes
from vita_ref.files.tokenizer import load_tokenizer
from vita_ref.loading import PREFIXES
from vita_ref.prompt import TEMPLATES

DEMO = Path(__file__).parents[1] / "weights" / "demo"
NAMES = ["documented", "vita-1.5", "qwen2-7b", "demo"]
DECODER = DecoderConfig(97, 24, 52, 3, 6, 2, 4)
VISION = VisionConfig(16, 20, 2, 4)
CODEC = CodecConfig(23, (1, 2), (3, 2), (5, 4), 256, (3, 5), ((1, 2), (1, 3)))


# ---- derived sizes


def test_a_tile_of_vita_takes_256_positions_of_four_joined_patches():
    vision = VitaConfig.preset("vita-1.5").vision
    assert vision.grid == 32  # 448 / 14
    assert vision.num_positions == 256  # (32 / 2) squared
    assert vision.feature_size == 4096  # 4 patches of 1024


def test_without_a_shuffle_a_tile_takes_one_position_per_patch_and_one_for_the_class_token():
    vision = VitaConfig.preset("documented").vision
    assert vision.num_positions == 1025  # 32 * 32 + 1
    assert vision.feature_size == 1024


def test_the_special_tokens_of_speech_follow_the_codes():
    assert SpeechConfig(1024, 2, DECODER).specials == (1024, 1025, 1026, 1027)


def test_a_codec_token_becomes_as_many_samples_as_the_product_of_the_rates():
    assert CODEC.hop == 6


# ---- sizes that cannot be


@pytest.mark.parametrize(
    ("config", "sizes", "reason"),
    [
        (DECODER, {"num_attention_heads": 6, "num_key_value_heads": 4}, r"\(6\) must be a multiple .* \(4\)"),
        (DECODER, {"num_key_value_heads": 0}, "num_key_value_heads must be an integer of at least 1, got 0"),
        (DECODER, {"hidden_size": "24"}, "hidden_size must be an integer of at least 1, got '24'"),
        (DECODER, {"num_hidden_layers": True}, "num_hidden_layers must be an integer of at least 1, got True"),
        (DECODER, {"head_dim": 5}, "head_dim must be even for rotary positions, got 5"),
        (VISION, {"image_size": 450}, r"\(450\) must be a multiple of patch_size x shuffle \(14 x 2\)"),
        (VISION, {"image_size": 42}, r"\(42\) must be a multiple of patch_size x shuffle \(14 x 2\)"),
        (VISION, {"keep_class_token": True}, "keep_class_token must be False with a pixel shuffle"),
        (VISION, {"num_attention_heads": 3}, r"\(16\) must be a multiple of num_attention_heads \(3\)"),
        (CODEC, {"upsample_kernel_sizes": (4, 4)}, "kernel 4 must be its rate 3 plus an even number"),
        (CODEC, {"upsample_kernel_sizes": (1, 4)}, "kernel 1 must be its rate 3 plus an even number"),
        (VitaConfig(DECODER), {"dtype": "int4"}, "one of float32, bfloat16, float16, got 'int4'"),
    ],
)
def test_impossible_sizes_are_refused_with_their_names(config, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        replace(config, **sizes)


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        VitaConfig.preset("demo").decoder.vocab_size = 3


# ---- presets


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'vita-2'; the presets are " + ", ".join(NAMES)):
        VitaConfig.preset("vita-2")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_names_a_template(name):
    assert VitaConfig.preset(name).template in TEMPLATES


def test_the_demo_preset_builds_the_model_whose_weights_ship():
    with torch.device("meta"):
        vita = Vita(VitaConfig.preset("demo"))
    state = vita.state_dict()
    built = {name: tuple(state[own].shape) for name, own in module_names(vita, PREFIXES).items()}
    shipped = {}
    for file in {*find_tensors(DEMO).values()}:
        shipped |= read_shapes(file)
    assert built == shipped


def test_the_demo_preset_ends_and_pads_with_the_tokens_of_the_shipped_tokenizer():
    config, tokenizer = VitaConfig.preset("demo"), load_tokenizer(DEMO)
    assert config.eos_token_ids == (tokenizer.id_of("<|end|>"),)
    assert config.pad_token_id == tokenizer.id_of("<pad>")
    assert config.bos_token_id is tokenizer.bos_token_id is None
    assert config.decoder.vocab_size == len(tokenizer)
