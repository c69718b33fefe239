"""Configs of InternVL folders in both layouts, what is refused by part and setting, and the names of their tensors."""

import json
import os
import shutil

import pytest
from conftest import GOLDEN
from hostile import variants
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from test_folders import refused, write_folder
from test_hostile_files import read

from vita_ref import Vita
from vita_ref.config import DecoderConfig, VisionConfig
from vita_ref.files.folders import config_json, read_config

FOLDERS = {name: GOLDEN / "internvl" / name for name in ("hf", "chat")}
RAW = {name: json.loads((folder / "config.json").read_text()) for name, folder in FOLDERS.items()}
PIXELS = json.loads((FOLDERS["hf"] / "preprocessor_config.json").read_text())
EXAMPLES = 40  # of hostile configs
LLM = {"hf": "text_config", "chat": "llm_config"}
SYSTEM = "Ein \\'System\\'."
CONVERSATION = f"""# templates
raise RuntimeError("this file is not run")
class Conversation:
    name: str
    system_message: str = ""
    def set(self, system_message):
        self.system_message = system_message
register(Conversation(name='internvl2_5', # system_message='not this one'
    system_message=('{SYSTEM}' "\\n2"), sep='<|im_end|>'))
register(Conversation(name="Hermes-2", system_message="Other."))
"""


def changed(layout, part=None, **changes):
    """The golden config with other values, at the top or in one of its parts."""
    raw = RAW[layout]
    return raw | ({part: raw[part] | changes} if part else changes)


def files_of(layout):
    return {"preprocessor_config": PIXELS} if layout == "hf" else {}


def test_both_layouts_give_the_config_of_the_same_model():
    hf, chat = (read_config(folder) for folder in FOLDERS.values())
    assert hf.decoder == DecoderConfig(263, 64, 96, 3, 4, 2, 16, max_position_embeddings=4096, tie_word_embeddings=True)
    assert hf.vision == VisionConfig(40, 56, 3, 4, image_size=56, feature_scale=1.0, projector_norm=True)
    assert (hf.template, hf.default_system) == ("internvl", None)
    assert (chat.template, chat.default_system) == ("internvl2_5", "")
    for config in (hf, chat):
        assert (config.min_tiles, config.max_tiles, config.use_thumbnail) == (1, 6, True)
        assert (config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ((258,), 256, 256)
        assert config.audio is None and config.image_aspect_ratio == "stretch"
    assert (chat.decoder, chat.vision) == (hf.decoder, hf.vision)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_config_written_as_our_own_is_read_back_unchanged(tmp_path, layout):
    config = read_config(FOLDERS[layout])
    assert read_config(write_folder(tmp_path, config_json(config))) == config


def test_a_decoder_without_ties_and_with_other_sizes_is_read_from_either_layout(tmp_path):
    sizes = {"vocab_size": 300, "num_attention_heads": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    for layout, key in LLM.items():
        raw = changed(layout, key, **sizes) | {"tie_word_embeddings": False}
        got = read_config(write_folder(tmp_path / layout, raw, **files_of(layout))).decoder
        assert (got.vocab_size, got.head_dim, got.rms_norm_eps, got.tie_word_embeddings) == (300, 8, 1e-5, False)


@pytest.mark.parametrize("layout", FOLDERS)
def test_qwen3_has_norms_of_q_and_k_and_no_bias(tmp_path, layout):
    raw = changed(layout, LLM[layout], model_type="qwen3", head_dim=20)
    got = read_config(write_folder(tmp_path, raw, **files_of(layout))).decoder
    assert (got.qk_norm, got.attention_bias, got.head_dim) == (True, False, 20)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("layout", FOLDERS)
def test_dynamic_scaling_of_positions_is_none_as_far_as_answers_go(tmp_path, layout, key):
    """InternVL3's config has it; up to max_position_embeddings it is the plain rotation."""
    raw = changed(layout, LLM[layout], **{key: {"type": "dynamic", "factor": 2.0, "rope_theta": 700.0}})
    got = read_config(write_folder(tmp_path, raw, **files_of(layout))).decoder
    assert (got.rope_theta, got.rope_scaling, got.max_position_embeddings) == (700.0, None, 4096)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1, 6, True)),
        ({"min_dynamic_patch": 2, "max_dynamic_patch": 4, "use_thumbnail": False}, (2, 4, False)),
        ({"dynamic_image_size": False}, (1, 1, True)),
    ],
)
def test_published_configs_have_the_rules_of_tiles(tmp_path, changes, expected):
    got = read_config(write_folder(tmp_path, changed("chat", **changes)))
    assert (got.min_tiles, got.max_tiles, got.use_thumbnail) == expected


def test_the_rules_of_tiles_are_those_of_the_picture_processor_in_its_old_or_new_file(tmp_path):
    pixels = PIXELS | {"min_patches": 2, "max_patches": 5, "image_mean": [0.1, 0.2, 0.3], "crop_to_patches": False}
    old = read_config(write_folder(tmp_path / "old", RAW["hf"], preprocessor_config=pixels))
    new = read_config(write_folder(tmp_path / "new", RAW["hf"], processor_config={"image_processor": pixels}))
    assert old == new
    assert (old.min_tiles, old.max_tiles, old.use_thumbnail, old.vision.image_mean) == (2, 5, True, (0.1, 0.2, 0.3))


def test_sides_may_be_numbers_or_pairs(tmp_path):
    raw = changed("hf", "vision_config", image_size=56, patch_size=14)
    assert read_config(write_folder(tmp_path, raw, preprocessor_config=PIXELS)).vision == read_config(FOLDERS["hf"]).vision


# ---- what is refused


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("kind", ["internlm2", "llama", "phi3", "qwen3_moe", 3])
def test_another_language_model_is_refused_by_its_name(tmp_path, layout, kind):
    raw = changed(layout, LLM[layout], model_type=kind)
    refused(write_folder(tmp_path, raw), f"{LLM[layout]}: the language model {kind!r} is not supported", "qwen2 and qwen3")


@pytest.mark.parametrize(
    ("layout", "part", "changes", "words"),
    [
        ("chat", "vision_config", {"qk_normalization": True, "norm_type": "rms_norm"}, ["qk_normalization, norm_type"]),
        ("hf", "vision_config", {"use_qk_norm": True, "norm_type": "rms_norm"}, ["use_qk_norm, norm_type"]),
        ("hf", "vision_config", {"use_mean_pooling": False}, ["use_mean_pooling"]),
        ("hf", "vision_config", {"use_mask_token": True}, ["use_mask_token"]),
        ("hf", "vision_config", {"image_size": [56, 70]}, ["image_size must be a square, got [56, 70]"]),
        ("hf", "text_config", {"model_type": "qwen3", "attention_bias": True}, ["attention_bias"]),
        ("chat", "llm_config", {"use_sliding_window": True}, ["llm_config: not supported here: use_sliding_window"]),
        ("chat", "llm_config", {"quantization_config": {"quant_method": "awq"}}, ["the method 'awq'"]),
        ("chat", None, {"ps_version": "v1"}, ["ps_version"]),
        ("chat", None, {"select_layer": -2}, ["select_layer"]),
        ("chat", None, {"pad2square": True}, ["pad2square"]),
        ("chat", None, {"force_image_size": 112}, ["force_image_size (other than"]),
        ("chat", None, {"template": "internlm2-chat"}, ["template 'internlm2-chat'", "Hermes-2 and internvl2_5"]),
        ("chat", None, {"template": None}, ["template None"]),
        ("chat", None, {"max_dynamic_patch": 0}, ["max_tiles"]),
        ("chat", None, {"min_dynamic_patch": 7}, ["min_tiles (7) must be at most max_tiles (6)"]),
        ("chat", None, {"downsample_ratio": 0.3}, ["downsample_ratio", "got 0.3"]),
        ("hf", None, {"downsample_ratio": 0}, ["downsample_ratio", "got 0"]),
        ("hf", None, {"vision_feature_layer": [-2]}, ["vision_feature_layer"]),
        ("hf", None, {"vision_feature_select_strategy": "full"}, ["vision_feature_select_strategy"]),
        ("hf", None, {"projector_hidden_act": "silu"}, ["projector_hidden_act"]),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_its_part_and_name(tmp_path, layout, part, changes, words):
    raw = changed(layout, part, **changes)
    refused(write_folder(tmp_path, raw), tmp_path / "config.json", *words)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"size": {"height": 448, "width": 448}}, "size (other than"),
        ({"resample": 2}, "resample"),
        ({"do_resize": False}, "do_resize"),
        *(({"rescale_factor": factor}, "rescale_factor (other than 1/255)") for factor in (1.0, 0, 1 / 127.5, "x", [1])),
    ],
)
def test_a_picture_processor_that_does_something_else_is_refused(tmp_path, changes, word):
    folder = write_folder(tmp_path, RAW["hf"], preprocessor_config=PIXELS | changes)
    refused(folder, tmp_path / "preprocessor_config.json", word)


@pytest.mark.parametrize("layout", FOLDERS)
def test_a_config_with_hostile_values_is_read_or_refused(layout):
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(variants([RAW[layout], PIXELS]))
    def check(files):
        if type(files) is list and len(files) == 2:
            read(files[0], preprocessor_config=files[1])

    check()


def test_folders_of_vita_are_no_options_of_these(tmp_path):
    refused(FOLDERS["chat"], "--vision-dir is for VITA-1.5", vision_dir=tmp_path)


# ---- the system text of published folders


@pytest.mark.parametrize("template, expected", [("internvl2_5", "Ein 'System'.\n2"), ("Hermes-2", "Other.")])
def test_the_system_text_is_that_of_the_template_in_the_folders_python_which_is_not_run(tmp_path, template, expected):
    (tmp_path / "conversation.py").write_text(CONVERSATION)
    assert read_config(write_folder(tmp_path, changed("chat", template=template))).default_system == expected


def test_a_system_text_in_the_config_comes_first_and_null_is_none(tmp_path):
    (tmp_path / "conversation.py").write_text(CONVERSATION)
    assert read_config(write_folder(tmp_path, changed("chat", system_message="Mine."))).default_system == "Mine."
    assert read_config(write_folder(tmp_path, changed("chat", system_message=None))).default_system.startswith("Ein")


@pytest.mark.parametrize("source", ["name = (", "name = '''x", "name = b'\\xff'\nname = f'{x}'\nname = '\\N{no}'", "\x00 name = 'x'"])
def test_python_that_cannot_be_read_is_refused_or_has_no_text(tmp_path, source):
    (tmp_path / "conversation.py").write_text(source)
    folder = write_folder(tmp_path, RAW["chat"])
    try:
        assert read_config(folder).default_system == ""
    except ValueError:
        refused(folder, tmp_path / "conversation.py", "is not Python with the templates of InternVL")


# ---- weights


def copy_with(folder, layout, change):
    """A copy of a golden folder with other tensors. ``change`` gets the dict of its tensors."""
    shutil.copytree(FOLDERS[layout], folder)
    for file in folder.iterdir():  # the copies of read-only files
        os.chmod(file, 0o644)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [
        ("hf", "vision_tower.encoder.layer.1.attention.k_proj.weight", "[40, 40]"),
        ("hf", "multi_modal_projector.layer_norm.bias", "[160]"),
        ("hf", "vision_tower.embeddings.cls_token", "[1, 1, 40]"),
        ("chat", "vision_model.encoder.layers.2.attn.qkv.bias", "[120]"),
        ("chat", "mlp1.3.weight", "[64, 64]"),
        ("chat", "language_model.model.norm.weight", "[64]"),
    ],
)
def test_a_missing_or_surplus_tensor_is_named_as_the_checkpoint_names_it(tmp_path, layout, name, shape):
    other = name.replace("weight", "wait").replace("bias", "wait").replace("token", "wait")
    folder = copy_with(tmp_path / "copy", layout, lambda tensors: tensors.update({other: tensors.pop(name)}))
    with pytest.raises(ValueError) as error:
        Vita.from_pretrained(folder)
    assert f"missing: {name} {shape} (expected in" in str(error.value) and f"surplus: {other} {shape}" in str(error.value)


def test_a_misshapen_part_of_a_joined_matrix_is_named(tmp_path):
    name = "vision_tower.encoder.layer.0.attention.v_proj.weight"
    folder = copy_with(tmp_path / "copy", "hf", lambda tensors: tensors.update({name: tensors[name][:20].clone()}))
    with pytest.raises(ValueError, match=r"misshapen: .*v_proj.weight \[20, 40\], expected \[40, 40\]"):
        Vita.from_pretrained(folder)


def test_rows_of_one_matrix_may_be_in_several_files(tmp_path):
    shutil.copytree(FOLDERS["hf"], tmp_path / "copy")
    tensors = load_file(FOLDERS["hf"] / "model.safetensors")
    (tmp_path / "copy" / "model.safetensors").unlink()
    shards = {f"{i}.safetensors": [*tensors][i::2] for i in range(2)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / "copy" / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    os.chmod(tmp_path / "copy", 0o755)
    (tmp_path / "copy" / "model.safetensors.index.json").write_text(json.dumps(index))
    whole, parts = (Vita.from_pretrained(folder).state_dict() for folder in (FOLDERS["hf"], tmp_path / "copy"))
    assert whole.keys() == parts.keys() and all(whole[name].equal(parts[name]) for name in whole)


def test_both_layouts_give_the_same_weights_and_so_do_the_newer_names(tmp_path):
    def rename(tensors):
        for name in [*tensors]:
            new = name.replace("language_model.model.", "language_model.")
            tensors[f"model.{new}"] = tensors.pop(name)

    newer = copy_with(tmp_path / "newer", "hf", rename)
    first, *others = (Vita.from_pretrained(folder).state_dict() for folder in (*FOLDERS.values(), newer))
    for other in others:
        assert first.keys() == other.keys() and all(first[name].equal(other[name]) for name in first)


@pytest.mark.parametrize("stored", [False, True])
def test_a_stored_head_is_used_if_it_differs_from_the_embeddings(tmp_path, stored):
    def add(tensors):
        table = tensors["language_model.model.embed_tokens.weight"]
        tensors["language_model.lm_head.weight"] = table + 1 if stored else table.clone()

    vita = Vita.from_pretrained(copy_with(tmp_path / "copy", "chat", add))
    assert vita.config.decoder.tie_word_embeddings is not stored
    if stored:
        assert vita.decoder.lm_head.weight.equal(vita.decoder.embed_tokens.weight + 1)


def test_keys_that_transformers_leaves_out_have_the_defaults_of_its_classes(tmp_path):
    """Source: transformers' Qwen2Config and InternVLVisionConfig."""
    got = read_config(write_folder(tmp_path, {"model_type": "internvl", "text_config": {}, "vision_config": {}}))
    sizes = (151936, 4096, 22016, 32, 32, 32, 128)
    assert got.decoder == DecoderConfig(*sizes, rope_theta=1e4, tie_word_embeddings=True)
    assert got.vision == VisionConfig(1024, 4096, 24, 16, qkv_bias=False, feature_scale=1.0, projector_norm=True)
    assert (got.min_tiles, got.max_tiles) == (1, 12)
    assert got.template == "internvl"
