"""Settings that no checkpoint has: each file of a folder is read, or refused with one line that says why."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from hostile import as_json, changed, deep, refusal, variants
from hypothesis import example, given, settings
from test_folders import AUDIO_FOLDER, QWEN2, VISION_FOLDER

from vita_ref import Vita
from vita_ref.files.folders import read_config
from vita_ref.files.speech import read_codec_config, read_speech_config
from vita_ref.speech import Speech

ROOT = Path(__file__).parents[2]
CHECKPOINT, SPEECH = GOLDEN / "checkpoint", GOLDEN / "tts"
few = settings(max_examples=40, deadline=None, derandomize=True)


def valid(path):
    return json.loads(path.read_text())


OWN = valid(ROOT / "weights" / "demo" / "config.json")
VITA = valid(CHECKPOINT / "config.json")
TOWER = valid(CHECKPOINT / VISION_FOLDER / "config.json")
PIXELS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
GENERATION = {"eos_token_id": [5, 6], "pad_token_id": 7}
DECODER, CODEC = (valid(SPEECH / part / "model.json") for part in ("decoder", "codec"))
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "truncate": True}
RICH = QWEN2 | {
    "rope_scaling": YARN,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "head_dim": 4,
    "quantization_config": None,
}
BUILT = set()


def read(config, **others):
    """Reads a folder with this config.json and other JSON files, and builds the model without values."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"config": config, **others}.items():
            (Path(folder) / f"{name}.json").write_text(as_json(content))
        config = refusal(read_config, folder)
    return build(config)


def build(config):
    """Builds the model of a config on the meta device, once for each config; whatever was read can be built."""
    if config is not None and repr(config) not in BUILT:
        BUILT.add(repr(config))
        with torch.device("meta"):
            refusal(Vita, config)
    return config


# ---- configs


@few
@given(variants(OWN))
@example(OWN | {"model_type": []})
@example(OWN | {"eos_token_ids": 4})
@example(OWN | {"missing": {"colour": 3}})
@example(changed(OWN, ("decoder", "rms_norm_eps")))
@example(changed(OWN, ("decoder", "rms_norm_eps"), float("nan")))
@example(changed(OWN, ("decoder", "tie_word_embeddings"), "false"))
@example(changed(OWN, ("decoder", "num_hidden_layers"), 10**7))
@example(changed(OWN, ("decoder", "hidden_size"), 10**30))
@example(changed(OWN, ("vision", "image_mean"), [1, 2]))
@example(changed(OWN, ("audio", "hidden_size"), "x"))
@example(changed(OWN, ("audio", "frame_shift"), 0))
def test_our_own_config_is_read_or_refused(config):
    read(config)


@pytest.mark.parametrize("kind", [OWN, RICH])
def test_the_valid_settings_themselves_are_read(kind):
    assert read(kind, generation_config=GENERATION) is not None


@few
@given(variants([RICH, GENERATION]))
def test_a_qwen2_config_is_read_or_refused(files):
    if type(files) is list and len(files) == 2:
        read(files[0], generation_config=files[1])


@few
@given(variants([VITA, TOWER, PIXELS]))
@example([VITA, TOWER, PIXELS | {"image_mean": [1, 2]}])
@example([VITA, TOWER, PIXELS | {"image_std": [0, 0, 0]}])
def test_a_vita_folder_is_read_or_refused(files):
    if type(files) is not list or len(files) != 3:
        return
    with tempfile.TemporaryDirectory() as folder:
        vision = Path(folder) / VISION_FOLDER
        vision.mkdir()
        for path, content in zip((Path(folder), vision), files):
            (path / "config.json").write_text(as_json(content))
        (vision / "preprocessor_config.json").write_text(as_json(files[2]))
        build(refusal(read_config, folder))


def _train_yaml():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((CHECKPOINT / AUDIO_FOLDER / "train.yaml").read_text())


def _with_yaml(text):
    """Reads a VITA folder with this train.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(as_json(VITA | {"mm_vision_tower": None}))
        audio = Path(folder) / AUDIO_FOLDER
        audio.mkdir()
        (audio / "train.yaml").write_text(text)
        return build(refusal(read_config, folder))


def test_a_train_yaml_is_read_or_refused():
    valid = _train_yaml()
    assert _with_yaml(as_json(valid)) is not None  # JSON is YAML

    @few
    @given(variants(valid))
    def check(content):
        _with_yaml(as_json(content))

    check()


@few
@given(variants(DECODER))
@example([32, 64])
@example([0, 64, DECODER[2]])
def test_the_config_of_a_speech_decoder_is_read_or_refused(content):
    _speech(content, CODEC)


@few
@given(variants(CODEC))
@example(CODEC | {"global_tokens": [], "global_code_num": 0})
@example(CODEC | {"upsample_rates": [0, 5, 8, 5]})
@example(CODEC | {"resblock_kernel_sizes": [2, 1]})
def test_the_config_of_a_codec_is_read_or_refused(content):
    _speech(DECODER, content)


def _speech(decoder, codec):
    """Reads both files and builds the networks without values."""
    with tempfile.TemporaryDirectory() as folder:
        configs = []
        for read, content in ((read_speech_config, decoder), (read_codec_config, codec)):
            path = Path(folder) / f"{read.__name__}.json"
            path.write_text(as_json(content))
            configs.append(refusal(read, path))
        if None not in configs and repr(configs) not in BUILT:
            BUILT.add(repr(configs))
            with torch.device("meta"):
                refusal(Speech, *configs)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(variants(VITA))
@example(VITA | {"num_hidden_layers": 999})
def test_a_checkpoint_whose_config_was_changed_is_loaded_or_refused(config):
    with tempfile.TemporaryDirectory() as folder:
        for file in CHECKPOINT.iterdir():
            if file.name != "config.json":
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / "config.json").write_text(as_json(config))
        refusal(Vita.from_pretrained, folder)


# ---- nesting, size and names


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, json.dumps({"a": deep(200)}), "9" * 10_000])
def test_deep_or_endless_json_is_refused(tmp_path, name, text):
    (tmp_path / "config.json").write_text(as_json(QWEN2))
    (tmp_path / name).write_text(text)
    assert refusal(read_config, tmp_path) is None


def test_a_name_with_control_characters_is_escaped_in_the_message(tmp_path):
    folder = tmp_path / "a\nb\x1b[31m"
    with pytest.raises(ValueError, match=r"a\\nb\\x1b\[31m") as error:
        read_config(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 5000, "\x00", "\ud800"])
def test_a_folder_name_that_cannot_exist_is_refused(name):
    assert refusal(read_config, name) is None
    config = as_json(VITA | {"mm_vision_tower": name})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config)
        read = refusal(read_config, folder)
    assert read is None or read.missing
