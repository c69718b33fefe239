"""The config dataclasses: derived sizes, sizes that cannot be, and the presets of known models."""

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import Vita, VitaConfig
from vita_ref.config import (
    AudioConfig,
    CodecConfig,
    DecoderConfig,
    SpeechConfig,
    VisionConfig,
    YarnConfig,
)
from vita_ref.files.checkpoint import find_tensors, module_names, read_shapes
from vita_ref.files.names import PREFIXES
from vita_ref.files.tokenizer import load_tokenizer
from vita_ref.prompt import TEMPLATES

DEMO = Path(__file__).parents[1] / "weights" / "demo"
NAMES = ["documented", "vita-1.5", "qwen2-7b", "demo"]
DECODER = DecoderConfig(97, 24, 52, 3, 6, 2, 4)
VISION = VisionConfig(16, 20, 2, 4)
AUDIO = AudioConfig(16, 20, 2, 4, 12)
YARN = YarnConfig(4.0, 64)
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
        (CODEC, {"resblock_kernel_sizes": (3, 4)}, r"resblock_kernel_sizes must be odd, got \(3, 4\)"),
        (CODEC, {"global_tokens": (1, 23)}, r"global_tokens must be .* below n_codes \(23\)"),
        (VitaConfig(DECODER), {"dtype": "int4"}, "one of float32, bfloat16, float16, got 'int4'"),
        (VitaConfig(DECODER), {"audio_token_index": -200}, "image_token_index and audio_token_index are both -200"),
        (VitaConfig(DECODER, VISION), {"max_tiles": 400}, r"max_tiles \(400\) tiles of 448 pixels squared are too large"),
        (AUDIO, {"hidden_size": 15, "num_attention_heads": 3}, r"\(15\) must be even"),
        (AUDIO, {"sample_rate": 1000, "frame_length": 1.5}, r"frame_length \(1.5 ms\) is too short at 1000 Hz"),
        (AUDIO, {"frame_shift": 0.5}, "frame_shift must be a number of at least 1, got 0.5"),
        (VISION, {"image_mean": (1.0, 2.0)}, "image_mean must have 3 numbers, got 2"),
        (DECODER, {"head_dim": 2**18}, "num_attention_heads x head_dim"),
        (YARN, {"beta_slow": 32.0}, r"beta_fast \(32.0\) must be above beta_slow \(32.0\)"),
    ],
)
def test_impossible_sizes_are_refused_with_their_names(config, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        replace(config, **sizes)


CONFIGS = [YARN, DECODER, VISION, AUDIO, SpeechConfig(64, 2, DECODER), CODEC, VitaConfig.preset("demo")]
FIELDS = [(config, f) for config in CONFIGS for f in fields(config)]
WRONG = [  # no field takes one of these, whatever its type
    *(float("nan"), float("inf"), -float("inf"), 10**30, -(10**30), 1e300, b"x", [1, 2], {1, 2}, object, Ellipsis),
    *((None,), ("a",), (float("nan"),), (10**30,), ((10**30,),), ((("a",),),), 1j),
]


@pytest.mark.parametrize(("config", "f"), FIELDS, ids=[f"{type(c).__name__}.{f.name}" for c, f in FIELDS])
def test_every_field_refuses_what_no_field_takes_by_its_name(config, f):
    for value in WRONG:
        with pytest.raises(ValueError, match=f"^{f.name} must be ") as error:
            replace(config, **{f.name: value})
        assert str(error.value).isprintable()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(FIELDS), st.sampled_from([None, True, False, 0, 1, -1, 2.5, "3", "true", "", (), {}, (1,), YARN]))
def test_a_field_takes_values_of_its_own_type_only(place, value):
    config, f = place
    plain = {bool: bool, str: str, dict: dict}.get(f.type)
    try:
        made = getattr(replace(config, **{f.name: value}), f.name)
    except ValueError:
        return
    assert made is value
    if value is None:
        assert type(None) in get_args(f.type)
    elif type(value) is bool or plain:
        assert type(value) is plain


def test_a_range_has_both_its_ends():
    assert replace(DECODER, num_hidden_layers=1000, rms_norm_eps=1e-12, hidden_size=2**20)
    for value in (0, 1001):
        with pytest.raises(ValueError, match=f"num_hidden_layers must be an integer of at .*, got {value}"):
            replace(DECODER, num_hidden_layers=value)


def test_the_templates_that_a_config_may_name_are_those_that_exist():
    [kind] = [f.type for f in fields(VitaConfig) if f.name == "template"]
    assert set(get_args(kind)) == set(TEMPLATES)


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
