"""Configs: three kinds of folder, two spellings, and what is refused with its name."""

import json
import shutil
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_checkpoint
from vita_ref import VitaConfig
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig

CHECKPOINT = GOLDEN / "checkpoint"
EYE, EAR = "InternViT-300M-448px", "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"
PRESETS = ["documented", "vita-1.5", "qwen2-7b", "demo"]
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "tie_word_embeddings": True,
    "bos_token_id": 11,
    "eos_token_id": 12,
}
DECODER = DecoderConfig(97, 24, 52, 3, 6, 2, 4, 1e-5, 500.0, 77, True)


def folder(path, config, **files):
    """A folder with this config.json, and other JSON files beside it."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refused(path, *words, **dirs):
    with pytest.raises(ValueError) as error:
        VitaConfig.from_folder(path, **dirs)
    assert "\n" not in str(error.value)
    assert all(str(word) in str(error.value) for word in words), str(error.value)


# ---- plain Qwen2


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500.0, "torch_dtype": "bfloat16"},
        {"rope_theta": 500, "rope_scaling": None, "dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 500.0}, "torch_dtype": "bfloat16", "use_sliding_window": False},
        {"rope_scaling": {"type": "default"}, "rope_theta": 500.0, "dtype": "bfloat16", "sliding_window": 4096},
    ],
)
def test_old_and_new_spellings_of_a_qwen2_config_are_read_alike(tmp_path, spelling):
    config = VitaConfig.from_folder(folder(tmp_path, QWEN2 | spelling))
    assert config.decoder == DECODER and config.dtype == "bfloat16"
    assert config.bos_token_id == 11 and config.eos_token_ids == (12,)
    assert config.vision is config.audio is None


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ({"use_sliding_window": True}, "sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_is_not_done_here_is_refused_by_its_name(tmp_path, odd, named):
    refused(folder(tmp_path, QWEN2 | odd), named, tmp_path)


def test_a_dtype_that_nothing_here_runs_in_is_refused(tmp_path):
    refused(folder(tmp_path, QWEN2 | {"dtype": "int4"}), "int4", "bfloat16")


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
def test_a_size_that_lacks_is_named(tmp_path, key):
    refused(folder(tmp_path, {k: v for k, v in QWEN2.items() if k != key}), key, tmp_path / "config.json")


def test_what_a_config_leaves_out_has_the_defaults_of_qwen2(tmp_path):
    left_out = {"num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"}
    config = VitaConfig.from_folder(folder(tmp_path, {k: v for k, v in QWEN2.items() if k not in left_out}))
    decoder = config.decoder
    assert (decoder.num_key_value_heads, decoder.head_dim, decoder.rope_theta) == (6, 4, 10000.0)
    assert not decoder.tie_word_embeddings and decoder.attention_bias and config.dtype == "float32"


def test_the_head_size_of_the_config_wins_over_width_by_heads(tmp_path):
    assert VitaConfig.from_folder(folder(tmp_path, QWEN2 | {"head_dim": 10})).decoder.head_dim == 10


@pytest.mark.parametrize(("eos", "ids"), [(5, (5,)), ([5, 6], (5, 6))])
def test_end_tokens_come_from_the_generation_config_where_there_is_one(tmp_path, eos, ids):
    generation = {"eos_token_id": eos, "pad_token_id": 7}
    config = VitaConfig.from_folder(folder(tmp_path, QWEN2, generation_config=generation))
    assert config.eos_token_ids == ids and config.pad_token_id == 7
    config = VitaConfig.from_folder(folder(tmp_path, QWEN2 | {"eos_token_id": eos}, generation_config={}))
    assert config.eos_token_ids == ids and config.pad_token_id is None


@pytest.mark.parametrize("kind", [None, "llama", "vita-Mixtral"])
def test_an_unknown_kind_of_model_is_refused_with_those_that_are_known(tmp_path, kind):
    refused(folder(tmp_path, QWEN2 | {"model_type": kind}), repr(kind), "qwen2", "vita-Qwen2", "vita_ref")


def test_a_folder_without_a_good_config_is_refused(tmp_path):
    refused(tmp_path, "config.json", tmp_path)
    refused(tmp_path / "nowhere", "config.json", "nowhere")
    refused(folder(tmp_path / "a", "{"), "JSON", tmp_path / "a" / "config.json")
    refused(folder(tmp_path / "b", "[1]"), "JSON object")
    refused(folder(tmp_path / "c", QWEN2, generation_config="nothing"), "generation_config.json")


# ---- sizes that cannot be


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, ["6", "4"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads", "0"]),
        ({"head_dim": 5}, ["head_dim", "5"]),
    ],
)
def test_a_decoder_of_impossible_sizes_is_refused(sizes, named):
    with pytest.raises(ValueError) as error:
        replace(DECODER, **sizes)
    assert all(word in str(error.value) for word in named)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"image_size": 450}, ["450", "14"]),
        ({"image_size": 42}, ["42", "14", "2"]),
        ({"keep_class_token": True}, ["keep_class_token"]),
        ({"num_attention_heads": 3}, ["16", "3"]),
    ],
)
def test_an_eye_of_impossible_sizes_is_refused(sizes, named):
    with pytest.raises(ValueError) as error:
        replace(VisionConfig(16, 20, 2, 4), **sizes)
    assert all(word in str(error.value) for word in named)


def test_positions_and_feature_size_of_the_eye():
    config = VitaConfig.preset("vita-1.5").vision
    assert (config.grid, config.num_positions, config.feature_size) == (32, 256, 4096)
    config = VitaConfig.preset("documented").vision
    assert (config.num_positions, config.feature_size) == (1025, 1024)


# ---- this project's own folders


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_its_own_json(tmp_path, name):
    preset = VitaConfig.preset(name)
    assert VitaConfig.from_folder(folder(tmp_path, preset.to_json())) == preset


@settings(max_examples=25, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 96), max_size=3),
    st.sampled_from([None, 4600]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_any_config_comes_back_from_its_own_json(tmp_path_factory, eye, ear, eos, longest, dtype):
    config = VitaConfig(
        DECODER,
        VisionConfig(16, 20, 2, 4, image_mean=(0.1, 0.2, 0.3)) if eye else None,
        AudioConfig(16, 20, 2, 4, 12, chunk_size=3) if ear else None,
        eos_token_ids=tuple(eos),
        tokenizer_model_max_length=longest,
        dtype=dtype,
    )
    assert VitaConfig.from_folder(folder(tmp_path_factory.mktemp("own"), config.to_json())) == config


def test_a_part_that_is_null_is_absent(tmp_path):
    raw = {"model_type": "vita_ref", "decoder": asdict(DECODER), "vision": None, "audio": None}
    assert VitaConfig.from_folder(folder(tmp_path, raw)) == VitaConfig(DECODER)


def test_unknown_and_lacking_keys_of_our_own_folder_are_named(tmp_path):
    raw = {"model_type": "vita_ref", "decoder": asdict(DECODER)}
    refused(folder(tmp_path, raw | {"colour": 3}), "colour", tmp_path)
    refused(folder(tmp_path, raw | {"decoder": asdict(DECODER) | {"hiden_size": 3}}), "hiden_size", tmp_path)
    lacking = {k: v for k, v in asdict(DECODER).items() if k != "vocab_size"}
    refused(folder(tmp_path, raw | {"decoder": lacking}), "vocab_size", tmp_path)
    refused(folder(tmp_path, {"model_type": "vita_ref"}), "decoder", tmp_path)
    refused(folder(tmp_path, raw | {"decoder": 3}), "DecoderConfig", "3", tmp_path)


@pytest.mark.parametrize(
    "name, value, told",
    [("intermediate_size", "52", "got '52'"), ("intermediate_size", None, "got None"), ("num_attention_heads", 0, "zero")],
)
def test_sizes_that_cannot_be_are_refused(tmp_path, name, value, told):
    refused(folder(tmp_path, QWEN2 | {name: value}), told)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError) as error:
        VitaConfig.preset("vita-2")
    assert all(name in str(error.value) for name in ["vita-2", *PRESETS])


def test_the_demo_preset_is_that_of_the_weights_that_ship():
    shipped = VitaConfig.from_folder(GOLDEN.parents[1] / "weights" / "demo")
    assert VitaConfig.preset("demo") == shipped


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        VitaConfig.preset("demo").decoder.vocab_size = 3


# ---- the folders of VITA-1.5


def vita_folder(path, **changes):
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    return folder(path, raw | changes)


def copied(part, path):
    shutil.copytree(CHECKPOINT / part, path)
    return path


def test_a_vita_folder_is_read_with_its_eye_and_its_ear():
    config = VitaConfig.from_folder(CHECKPOINT)
    assert config.decoder == DecoderConfig(320, 64, 112, 3, 4, 2, 16, max_position_embeddings=4096)
    assert config.vision == VisionConfig(32, 80, 2, 4, image_size=56)
    ear = config.audio
    assert (ear.adapter_norm, ear.adapter_activation, ear.position_encoding) == ("layer", "gelu", "rel-enc")
    assert (config.tokenizer_padding_side, config.tokenizer_model_max_length) == ("right", 4600)
    assert (config.image_token_index, config.audio_token_index) == (-200, -500)
    assert (config.template, config.image_aspect_ratio, config.missing) == ("vita", "square", {})


@pytest.mark.parametrize("named", [f"./{EYE}", f"/home/training/ckpts/{EYE}", f"OpenGVLab/{EYE}"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_tower_is_found_by_its_name_in_the_folder_or_beside_it(tmp_path, named, beside):
    ours = vita_folder(tmp_path / "vita", mm_vision_tower=named, mm_audio_encoder=None)
    copied(EYE, (tmp_path if beside else ours) / EYE)
    config = VitaConfig.from_folder(ours)
    assert config.vision == VisionConfig(32, 80, 2, 4, image_size=56) and config.missing == {}
    assert config.audio is None


def test_a_tower_inside_wins_over_one_beside_and_a_given_one_over_both(tmp_path):
    ours = vita_folder(tmp_path / "vita", mm_vision_tower=f"/home/training/{EYE}", mm_audio_encoder=None)
    for place, layers in ((ours / EYE, 5), (tmp_path / EYE, 6), (tmp_path / "other", 7)):
        config = json.loads((copied(EYE, place) / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    assert VitaConfig.from_folder(ours).vision.num_hidden_layers == 5
    assert VitaConfig.from_folder(ours, vision_dir=tmp_path / "other").vision.num_hidden_layers == 7
    shutil.rmtree(ours / EYE)
    assert VitaConfig.from_folder(ours).vision.num_hidden_layers == 6
    refused(ours, "nowhere", "vision", vision_dir=tmp_path / "nowhere")


def test_a_tower_that_is_nowhere_is_remembered_as_missing_with_how_to_mend_it(tmp_path):
    config = VitaConfig.from_folder(vita_folder(tmp_path / "vita"))
    assert config.vision is config.audio is None
    assert EYE in config.missing["vision"] and "--vision-dir" in config.missing["vision"]
    assert EAR in config.missing["audio"] and "--audio-dir" in config.missing["audio"]


def test_a_tower_without_a_config_is_an_error(tmp_path):
    ours = vita_folder(tmp_path / "vita")
    (ours / EYE).mkdir()
    refused(ours, EYE, "config.json")
    shutil.rmtree(ours / EYE)
    (ours / EAR).mkdir()
    refused(ours, EAR, "train.yaml")


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"qk_normalization": True}, "qk_normalization"),
        ({"norm_type": "rms_norm"}, "norm_type"),
    ],
)
def test_an_eye_that_is_built_otherwise_is_refused(tmp_path, odd, named):
    ours = vita_folder(tmp_path / "vita")
    config = json.loads((copied(EYE, ours / EYE) / "config.json").read_text())
    (ours / EYE / "config.json").write_text(json.dumps(config | odd))
    refused(ours, named, EYE)


def test_what_an_eye_leaves_out_has_the_defaults_of_its_class(tmp_path):
    ours = vita_folder(tmp_path / "vita")
    path = copied(EYE, ours / EYE) / "config.json"
    sizes = dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), (32, 80, 2, 4)))
    path.write_text(json.dumps(sizes | {"norm_type": "layer_norm", "qk_normalization": False}))
    eye = VitaConfig.from_folder(ours).vision
    assert eye == VisionConfig(32, 80, 2, 4, 224, 14, 3, 1e-6, qkv_bias=False)
    path.write_text(json.dumps(sizes))
    refused(ours, "qk_normalization, norm_type", EYE)


def test_the_pixels_of_an_eye_are_normalised_as_its_folder_says(tmp_path):
    ours = vita_folder(tmp_path / "vita")
    mean = [0.1, 0.2, 0.3]
    (copied(EYE, ours / EYE) / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
    eye = VitaConfig.from_folder(ours).vision
    assert eye.image_mean == tuple(mean) and eye.image_std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("odd", [{"mm_projector_type": "linear"}, {"use_s2": True}])
def test_another_projector_is_refused(tmp_path, odd):
    refused(vita_folder(tmp_path / "vita", **odd), "projector")


@pytest.mark.parametrize(
    ("text", "instead", "named"),
    [
        ("subsampling:", "somewhere_else:", "subsampling"),
        ("transformer-num-blocks", "transformer-blocks", "num_blocks"),
        ("para_conf", "parameters", "para_conf"),
        ("encoder_conf:", "encoder_conf: [", "train.yaml"),
        ("rel-enc", "some-enc", "pos-enc"),
    ],
)
def test_an_ear_whose_description_is_not_understood_is_refused_by_name(tmp_path, text, instead, named):
    pytest.importorskip("yaml")
    ours = vita_folder(tmp_path / "vita")
    described = copied(EAR, ours / EAR) / "train.yaml"
    content = described.read_text()
    assert text in content
    described.write_text(content.replace(text, instead))
    refused(ours, named, EAR)


def test_towers_that_a_tool_writes_are_read_as_they_were_meant(tmp_path):
    pytest.importorskip("yaml")
    eye = VisionConfig(24, 50, 2, 3, 42, 7, 3, 1e-5, qkv_bias=False)
    ear = AudioConfig(
        16, 36, 2, 4, subsampling_size=12, num_mel_bins=40, frame_length=20.0, position_encoding="abs-enc",
        normalize_before=False, concat_after=True, chunk_size=5, left_chunks=2, dynamic_chunks=True,
        adapter_kernel_size=3, adapter_norm="batch", adapter_activation="relu",
    )  # fmt: skip
    ours = vita_folder(tmp_path / "vita")
    make_checkpoint.write_towers(ours, VitaConfig(DecoderConfig(320, 64, 112, 3, 4, 2, 16), eye, ear))
    found = VitaConfig.from_folder(ours)
    assert (found.vision, found.audio) == (eye, ear)


def test_what_the_description_of_an_ear_leaves_out_has_the_defaults_of_its_classes(tmp_path):
    yaml = pytest.importorskip("yaml")
    ours = vita_folder(tmp_path / "vita")
    path = copied(EAR, ours / EAR) / "train.yaml"
    raw = yaml.safe_load(path.read_text())
    parts = raw["encoder_conf"]["para_conf"]
    sizes = {"attention-dim": 32, "linear-units": 64, "num-blocks": 2, "attention-heads": 4}
    parts["transformer"] = {f"transformer-{name}": size for name, size in sizes.items()}
    parts["subsampling"] = {"subsampling-output-dim": 32}
    raw["model_conf"] = {"adpter_type": "subsampling"}
    path.write_text(yaml.safe_dump(raw))
    ear = VitaConfig.from_folder(ours).audio
    assert (ear.position_encoding, ear.normalize_before, ear.concat_after) == ("abs-enc", True, False)
    assert (ear.chunk_size, ear.left_chunks, ear.dynamic_chunks) == (-1, -1, True)
    assert (ear.adapter_kernel_size, ear.adapter_norm, ear.adapter_activation) == (3, "batch", "relu")
    path.write_text(yaml.safe_dump(raw | {"model_conf": {}}))
    refused(ours, "adpter_type", EAR)


@pytest.mark.parametrize(("finetuned", "prompts"), [(True, 5), (False, 0)])
def test_learned_rows_in_front_of_a_sound_count_only_where_they_were_trained(tmp_path, finetuned, prompts):
    ours = vita_folder(tmp_path / "vita", audio_prompt_finetune=finetuned, audio_prompt_num=5)
    copied(EAR, ours / EAR)
    assert VitaConfig.from_folder(ours).audio.num_prompts == prompts
