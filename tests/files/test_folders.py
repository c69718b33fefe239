"""Reading configs: three kinds of folder, old and new spellings, and what is refused by name."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_checkpoint
from vita_ref import VitaConfig
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.files.folders import config_json, read_config, read_json

ROOT = Path(__file__).parents[2]
CHECKPOINT = GOLDEN / "checkpoint"
VISION_FOLDER, AUDIO_FOLDER = "InternViT-300M-448px", "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"
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
DECODER = DecoderConfig(97, 24, 52, 3, 6, 2, 4, 1e-5, 500.0, 77, True)  # QWEN2 with rope_theta 500
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]


def write_folder(path, config, **others):
    """A folder with this config.json, and other JSON files next to it; a str is written as it is."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **others}.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


def refused(path, *words, **options):
    """Checks that a folder is refused in one line that holds all the words."""
    with pytest.raises(ValueError) as error:
        read_config(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


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
def test_old_and_new_spellings_of_a_qwen2_config_mean_the_same(tmp_path, spelling):
    config = read_config(write_folder(tmp_path, QWEN2 | spelling))
    assert config == VitaConfig(DECODER, bos_token_id=11, eos_token_ids=(12,), dtype="bfloat16")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling of type 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'full_attention' in rope_scaling"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"rope_type": "yarn"}}, "missing fields: factor"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized with the method 'gptq'"),
        ({"quantization_config": {"bits": 4}}, "--quantize int8"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_name(tmp_path, setting, name):
    refused(write_folder(tmp_path, QWEN2 | setting), name, tmp_path)


def test_an_unknown_dtype_is_refused_with_the_known_ones(tmp_path):
    refused(write_folder(tmp_path, QWEN2 | {"dtype": "int4"}), "int4", "float32, bfloat16, float16", tmp_path)


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_size_is_named_with_its_file(tmp_path, key):
    refused(write_folder(tmp_path, without(QWEN2, key)), f"has no {key}", tmp_path / "config.json")


@pytest.mark.parametrize("value", ["52", None, 0, -1, 2.5])
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_not_a_positive_integer_is_refused(tmp_path, key, value):
    refused(write_folder(tmp_path, QWEN2 | {key: value}), f"{key} must be an integer", f"got {value!r}", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("rope_parameters", [3], "an object, got [3]"),
        ("rope_scaling", [3], "an object, got [3]"),
        ("rope_theta", [3], "a number of at least"),
        ("rms_norm_eps", None, "a number of at least 1e-12, got None"),
        ("tie_word_embeddings", "false", "true or false, got 'false'"),
        ("use_sliding_window", "false", "true or false, got 'false'"),
        ("eos_token_id", "x", "an integer of at least 0"),
        ("num_hidden_layers", 10**7, "an integer of at most 1000, got 10000000"),
        ("hidden_size", 10**30, "an integer of at most 1048576"),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused_with_its_key_and_file(tmp_path, key, value, expected):
    refused(write_folder(tmp_path, QWEN2 | {key: value}), tmp_path / "config.json", key, expected)


def test_quantized_weights_are_refused_in_every_kind_of_folder(tmp_path):
    for kind in ("vita_ref", "qwen2", "vita-Qwen2"):
        raw = QWEN2 | {"model_type": kind, "quantization_config": {"quant_method": "fp8"}}
        refused(write_folder(tmp_path, raw), "'fp8'", tmp_path / "config.json")
    assert read_config(write_folder(tmp_path, QWEN2 | {"quantization_config": None})).decoder


def test_keys_that_a_qwen2_config_leaves_out_have_the_defaults_of_qwen2(tmp_path):
    keys = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    config = read_config(write_folder(tmp_path, without(QWEN2, *keys)))
    assert config.decoder == DecoderConfig(97, 24, 52, 3, 6, 6, 4, 1e-6, 10000.0, 32768, False, True)
    assert config.dtype == "float32"


def test_a_given_head_size_is_used_in_place_of_width_divided_by_heads(tmp_path):
    assert read_config(write_folder(tmp_path, QWEN2 | {"head_dim": 10})).decoder.head_dim == 10


@pytest.mark.parametrize(("eos", "ids"), [(5, (5,)), ([5, 6], (5, 6)), (None, ())])
def test_end_tokens_are_those_of_the_generation_config_or_else_of_the_config(tmp_path, eos, ids):
    generation = {"eos_token_id": eos, "pad_token_id": 7}
    config = read_config(write_folder(tmp_path, QWEN2, generation_config=generation))
    assert config.eos_token_ids == ids and config.pad_token_id == 7
    config = read_config(write_folder(tmp_path, QWEN2 | {"eos_token_id": eos}, generation_config={}))
    assert config.eos_token_ids == ids and config.pad_token_id is None


@pytest.mark.parametrize("kind", [None, "llama", "vita-Mixtral"])
def test_an_unknown_kind_of_model_is_refused_with_the_known_ones(tmp_path, kind):
    refused(write_folder(tmp_path, QWEN2 | {"model_type": kind}), repr(kind), "vita_ref, qwen2, vita-Qwen2")


def test_a_folder_without_a_config_is_refused(tmp_path):
    refused(tmp_path, "not a checkpoint folder", "config.json", tmp_path)
    refused(tmp_path / "nowhere", "no such folder", "nowhere")


def test_a_damaged_json_file_is_named(tmp_path):
    refused(write_folder(tmp_path / "a", "{"), "not valid JSON", tmp_path / "a" / "config.json")
    refused(write_folder(tmp_path / "b", "[1]"), "is a JSON list, expected an object")
    refused(write_folder(tmp_path / "c", QWEN2, generation_config="nothing"), "generation_config.json")


def test_read_json_takes_a_path_as_a_string(tmp_path):
    write_folder(tmp_path, {"a": 1})
    assert read_json(str(tmp_path / "config.json")) == {"a": 1}


# ---- this project's own folders


@pytest.mark.parametrize("name", ["documented", "vita-1.5", "qwen2-7b", "demo"])
def test_every_preset_written_as_json_is_read_back_unchanged(tmp_path, name):
    preset = VitaConfig.preset(name)
    assert read_config(write_folder(tmp_path, config_json(preset))) == preset


@settings(max_examples=25, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 96), max_size=3),
    st.sampled_from([None, 4600]),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_any_config_written_as_json_is_read_back_unchanged(tmp_path_factory, sees, hears, eos, longest, dtype):
    config = VitaConfig(
        DECODER,
        VisionConfig(16, 20, 2, 4, image_mean=(0.1, 0.2, 0.3)) if sees else None,
        AudioConfig(16, 20, 2, 4, 12, chunk_size=3) if hears else None,
        eos_token_ids=tuple(eos),
        tokenizer_model_max_length=longest,
        dtype=dtype,
    )
    assert read_config(write_folder(tmp_path_factory.mktemp("own"), config_json(config))) == config


def test_the_shipped_folder_says_what_the_demo_preset_says():
    assert read_config(ROOT / "weights" / "demo") == VitaConfig.preset("demo")


def test_a_part_that_is_null_is_absent(tmp_path):
    raw = {"model_type": "vita_ref", "decoder": asdict(DECODER), "vision": None, "audio": None}
    assert read_config(write_folder(tmp_path, raw)) == VitaConfig(DECODER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 3}, ["VitaConfig has unknown fields: colour"]),
        ({"decoder": asdict(DECODER) | {"hiden_size": 3}}, ["DecoderConfig has unknown fields: hiden_size"]),
        ({"decoder": without(asdict(DECODER), "vocab_size")}, ["DecoderConfig has missing fields: vocab_size"]),
        ({"decoder": None}, ["VitaConfig has missing fields: decoder"]),
        ({"decoder": 3}, ["DecoderConfig must be a JSON object, got 3"]),
        ({"decoder": asdict(DECODER) | {"head_dim": 5}}, ["head_dim must be even", "got 5"]),
        ({"dtype": "int4"}, ["dtype must be one of", "'int4'"]),
    ],
)
def test_a_wrong_field_of_our_own_config_is_named_with_its_file(tmp_path, change, words):
    raw = {"model_type": "vita_ref", "decoder": asdict(DECODER)}
    refused(write_folder(tmp_path, raw | change), tmp_path / "config.json", *words)


# ---- VITA-1.5


def vita_folder(path, **changes):
    """The golden config.json with changes; the folders of vision tower and audio encoder are not there yet."""
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    return write_folder(path, raw | changes)


def copy_part(part, path):
    """A copy of the golden folder of a part."""
    shutil.copytree(CHECKPOINT / part, path)
    return path


def change_json(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_vita_folder_is_read_with_vision_and_audio():
    config = read_config(CHECKPOINT)
    assert config.decoder == DecoderConfig(320, 64, 112, 3, 4, 2, 16, max_position_embeddings=4096)
    assert config.vision == VisionConfig(32, 80, 2, 4, image_size=56)
    assert config.audio == AudioConfig(32, 64, 2, 4, subsampling_size=32, frame_length=25, frame_shift=10)
    assert (config.tokenizer_padding_side, config.tokenizer_model_max_length) == ("right", 4600)
    assert (config.image_token_index, config.audio_token_index) == (-200, -500)
    assert (config.template, config.image_aspect_ratio, config.missing) == ("vita", "square", {})


@pytest.mark.parametrize(
    "configured", [f"./{VISION_FOLDER}", f"/home/training/ckpts/{VISION_FOLDER}", f"OpenGVLab/{VISION_FOLDER}"]
)
@pytest.mark.parametrize("place", ["inside", "next to it"])
def test_the_vision_folder_is_found_by_its_name_in_the_checkpoint_folder_or_next_to_it(tmp_path, configured, place):
    ours = vita_folder(tmp_path / "vita", mm_vision_tower=configured, mm_audio_encoder=None)
    copy_part(VISION_FOLDER, (ours if place == "inside" else tmp_path) / VISION_FOLDER)
    config = read_config(ours)
    assert config.vision == VisionConfig(32, 80, 2, 4, image_size=56) and config.missing == {}
    assert config.audio is None


def test_a_given_vision_folder_comes_before_one_inside_and_that_before_one_next_to_it(tmp_path):
    ours = vita_folder(tmp_path / "vita", mm_vision_tower=f"/home/training/{VISION_FOLDER}", mm_audio_encoder=None)
    for place, layers in ((ours / VISION_FOLDER, 5), (tmp_path / VISION_FOLDER, 6), (tmp_path / "other", 7)):
        change_json(copy_part(VISION_FOLDER, place) / "config.json", {"num_hidden_layers": layers})
    assert read_config(ours, vision_dir=tmp_path / "other").vision.num_hidden_layers == 7
    assert read_config(ours).vision.num_hidden_layers == 5
    shutil.rmtree(ours / VISION_FOLDER)
    assert read_config(ours).vision.num_hidden_layers == 6


@pytest.mark.parametrize("part", ["vision", "audio"])
def test_a_given_folder_that_does_not_exist_is_refused(tmp_path, part):
    refused(vita_folder(tmp_path / "vita"), f"--{part}-dir", "nowhere", **{f"{part}_dir": tmp_path / "nowhere"})


def test_a_part_without_a_folder_is_noted_as_missing_with_the_flag_that_helps(tmp_path):
    config = read_config(vita_folder(tmp_path / "vita"))
    assert config.vision is config.audio is None
    assert VISION_FOLDER in config.missing["vision"] and "--vision-dir" in config.missing["vision"]
    assert AUDIO_FOLDER in config.missing["audio"] and "--audio-dir" in config.missing["audio"]


@pytest.mark.parametrize(("part", "file"), [(VISION_FOLDER, "config.json"), (AUDIO_FOLDER, "train.yaml")])
def test_a_part_whose_folder_is_empty_is_refused(tmp_path, part, file):
    ours = vita_folder(tmp_path / "vita")
    (ours / part).mkdir()
    refused(ours, part, f"has no {file}")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"qk_normalization": True}, "qk_normalization"),
        ({"norm_type": "rms_norm"}, "norm_type"),
    ],
)
def test_a_vision_tower_that_is_not_supported_is_refused_by_name(tmp_path, setting, name):
    ours = vita_folder(tmp_path / "vita")
    change_json(copy_part(VISION_FOLDER, ours / VISION_FOLDER) / "config.json", setting)
    refused(ours, name, VISION_FOLDER)


def test_keys_that_a_vision_config_leaves_out_have_the_defaults_of_upstreams_class(tmp_path):
    ours = vita_folder(tmp_path / "vita")
    path = copy_part(VISION_FOLDER, ours / VISION_FOLDER) / "config.json"
    sizes = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    path.write_text(json.dumps(sizes | {"norm_type": "layer_norm", "qk_normalization": False}))
    assert read_config(ours).vision == VisionConfig(32, 80, 2, 4, 224, 14, 3, 1e-6, qkv_bias=False)
    path.write_text(json.dumps(sizes))
    refused(ours, "qk_normalization, norm_type", VISION_FOLDER)


def test_mean_and_deviation_of_pixels_come_from_the_preprocessor_config(tmp_path):
    ours = vita_folder(tmp_path / "vita")
    path = copy_part(VISION_FOLDER, ours / VISION_FOLDER) / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    vision = read_config(ours).vision
    assert vision.image_mean == (0.1, 0.2, 0.3)
    assert vision.image_std == (0.229, 0.224, 0.225)  # not in the file: ImageNet's


@pytest.mark.parametrize("setting", [{"mm_projector_type": "linear"}, {"use_s2": True}])
def test_another_projector_is_refused(tmp_path, setting):
    refused(vita_folder(tmp_path / "vita", **setting), "projector")


@pytest.mark.parametrize(
    ("text", "replacement", "name"),
    [
        ("subsampling:", "somewhere_else:", "subsampling"),
        ("transformer-num-blocks", "transformer-blocks", "num_blocks"),
        ("attention-heads: 4", "attention-heads: four", "attention_heads must be an integer"),
        ("para_conf", "parameters", "para_conf"),
        ("encoder_conf:", "encoder_conf: [", "not valid YAML"),
        ("rel-enc", "some-enc", "pos-enc"),
        ("subsampling-transformer", "transformer", "encoder-layer-config is 'transformer'"),
    ],
)
def test_a_train_yaml_that_is_not_supported_is_refused_by_name(tmp_path, text, replacement, name):
    pytest.importorskip("yaml")
    ours = vita_folder(tmp_path / "vita")
    path = copy_part(AUDIO_FOLDER, ours / AUDIO_FOLDER) / "train.yaml"
    content = path.read_text()
    assert text in content
    path.write_text(content.replace(text, replacement))
    refused(ours, name, path)


def test_folders_of_vision_and_audio_that_a_tool_writes_are_read_back_unchanged(tmp_path):
    pytest.importorskip("yaml")
    vision = VisionConfig(24, 50, 2, 3, 42, 7, 3, 1e-5, qkv_bias=False)
    audio = AudioConfig(
        16, 36, 2, 4, subsampling_size=12, num_mel_bins=40, frame_length=20.0, position_encoding="abs-enc",
        normalize_before=False, concat_after=True, chunk_size=5, left_chunks=2, dynamic_chunks=True,
        adapter_kernel_size=3, adapter_norm="batch", adapter_activation="relu",
    )  # fmt: skip
    ours = vita_folder(tmp_path / "vita")
    make_checkpoint.write_towers(ours, VitaConfig(DECODER, vision, audio))
    config = read_config(ours)
    assert (config.vision, config.audio) == (vision, audio)


def test_keys_that_a_train_yaml_leaves_out_have_the_defaults_of_upstreams_classes(tmp_path):
    yaml = pytest.importorskip("yaml")
    ours = vita_folder(tmp_path / "vita")
    path = copy_part(AUDIO_FOLDER, ours / AUDIO_FOLDER) / "train.yaml"
    raw = yaml.safe_load(path.read_text())
    parts = raw["encoder_conf"]["para_conf"]
    sizes = {"attention-dim": 32, "linear-units": 64, "num-blocks": 2, "attention-heads": 4}
    parts["transformer"] = {f"transformer-{name}": size for name, size in sizes.items()}
    parts["subsampling"] = {"subsampling-output-dim": 32}
    raw["model_conf"] = {"adpter_type": "subsampling"}
    path.write_text(yaml.safe_dump(raw))
    audio = read_config(ours).audio
    assert (audio.position_encoding, audio.normalize_before, audio.concat_after) == ("abs-enc", True, False)
    assert (audio.chunk_size, audio.left_chunks, audio.dynamic_chunks) == (-1, -1, True)
    assert (audio.adapter_kernel_size, audio.adapter_norm, audio.adapter_activation) == (3, "batch", "relu")
    path.write_text(yaml.safe_dump(raw | {"model_conf": {}}))  # upstream's default is the adapter of type cnn
    refused(ours, "adpter_type", AUDIO_FOLDER)


@pytest.mark.parametrize(("finetuned", "prompts"), [(True, 5), (False, 0)])
def test_learned_rows_in_front_of_a_sound_count_only_if_they_were_trained(tmp_path, finetuned, prompts):
    ours = vita_folder(tmp_path / "vita", audio_prompt_finetune=finetuned, audio_prompt_num=5)
    copy_part(AUDIO_FOLDER, ours / AUDIO_FOLDER)
    assert read_config(ours).audio.num_prompts == prompts
