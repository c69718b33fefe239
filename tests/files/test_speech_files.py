"""Speech folders: the two configs, tensors by name from both kinds of file, and filling a module strictly."""

import json
import zipfile

import pytest
import torch
from conftest import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vita_ref.config import CodecConfig, DecoderConfig, SpeechConfig
from vita_ref.files.speech import (
    fill_module,
    read_codec_config,
    read_speech_config,
    read_tensors,
)
from vita_ref.files.values import LIMITS

SPEECH = GOLDEN / "tts"


def changed(part, tmp_path, change):
    """The golden model.json of a part with changes: a dict of keys, or a function on the content."""
    raw = json.loads((SPEECH / part / "model.json").read_text())
    raw = change(raw) if callable(change) else raw | change
    path = tmp_path / "model.json"
    path.write_text(json.dumps(raw))
    return path


def refused(call, *arguments):
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- configs


def test_the_speech_config_is_read_from_a_list_of_width_codes_and_options():
    decoder = DecoderConfig(68, 32, 80, 4, 4, 4, 8, rope_theta=1e4, attention_bias=False)  # 64 codes and 4 specials
    assert read_speech_config(SPEECH / "decoder" / "model.json") == SpeechConfig(64, 2, decoder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transformer_attention_dim": 16}, "attention_dim (16) must be 32 and a multiple of 4 heads"),
        ({"transformer_attention_heads": 5}, "attention_dim (32) must be 32 and a multiple of 5 heads"),
        ({"transformer_linear_units": 0}, "transformer_linear_units must be an integer of at least 1, got 0"),
        ({"transformer_num_blocks": "4"}, "transformer_num_blocks must be an integer of at least 1, got '4'"),
        ({"transformer_num_blocks": 10**7}, "num_hidden_layers must be an integer of at most 1000, got 10000000"),
    ],
)
def test_a_speech_config_of_impossible_sizes_is_refused_with_its_file(tmp_path, change, reason):
    path = changed("decoder", tmp_path, lambda raw: [raw[0], raw[1], raw[2] | change])
    message = refused(read_speech_config, path)
    assert reason in message and str(path) in message


def test_the_codec_config_is_read_and_its_lists_become_tuples():
    config = read_codec_config(SPEECH / "codec" / "model.json")
    assert config == CodecConfig(
        n_codes=64,
        global_tokens=(4, 38, 55, 38, 54, 49, 52, 51),
        upsample_rates=(3, 5, 8, 5),
        upsample_kernel_sizes=(3, 5, 12, 9),
        upsample_initial_channel=256,
        resblock_kernel_sizes=(3, 1),
        resblock_dilation_sizes=((1, 3, 5), (1, 2, 4)),
        sampling_rate=24000,
    )
    assert config.hop == 600


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"upsample_kernel_sizes": [3, 5, 11, 9]}, "kernel 11 must be its rate 8 plus an even number"),
        ({"upsample_rates": [3, 5]}, "needs one kernel for each rate, got 4 and 2"),
        ({"global_tokens": 3}, "global_tokens must be a list of at most 4096 values, got 3"),
        ({"global_tokens": [4, 38, 55]}, "global_tokens must be 1, 2, 4, ... or 128 codes below n_codes (64)"),
        ({"global_tokens": [4, 38]}, "2 global_tokens, expected 8 (global_code_num)"),
        ({"resblock_kernel_sizes": [3, 2]}, "resblock_kernel_sizes must be odd, got (3, 2)"),
        ({"resblock_dilation_sizes": [[1], []]}, "a list for each of the 1 to 16 resblock_kernel_sizes"),
        ({"upsample_rates": [1000] * 3, "upsample_kernel_sizes": [1000] * 3}, "whose product is at most 1048576"),
        ({"resblock": "2", "n_code_groups": 4}, "resblock '2', expected '1'; n_code_groups 4, expected 1"),
    ],
)
def test_a_codec_config_that_is_not_supported_is_refused_with_its_file(tmp_path, change, reason):
    path = changed("codec", tmp_path, change)
    message = refused(read_codec_config, path)
    assert reason in message and str(path) in message


@pytest.mark.parametrize("read", [read_speech_config, read_codec_config])
def test_a_missing_model_json_is_named(tmp_path, read):
    assert f"{tmp_path} is not" in refused(read, tmp_path / "model.json")


# ---- tensors


def test_names_of_nested_dicts_are_joined_and_a_dict_named_model_stands_for_the_whole(tmp_path):
    tensors = {"a": {"b": torch.ones(2), "c": {"d": torch.zeros(3)}}}
    for content in (tensors, {"model": tensors, "epoch": 3, "optimizer": {"x": torch.ones(1)}}):
        torch.save(content, tmp_path / "final.pt")
        read = read_tensors(tmp_path)
        assert {name: list(tensor.shape) for name, tensor in read.items()} == {"a.b": [2], "a.c.d": [3]}


def test_final_safetensors_is_read_in_place_of_final_pt(tmp_path):
    torch.save({"old": torch.ones(1)}, tmp_path / "final.pt")
    assert read_tensors(tmp_path).keys() == {"old"}
    save_file({"new": torch.ones(1)}, tmp_path / "final.safetensors")
    assert read_tensors(tmp_path).keys() == {"new"}


def test_a_folder_without_weights_says_which_files_were_looked_for(tmp_path):
    assert "no final.safetensors and no final.pt" in refused(read_tensors, tmp_path)


class Call:
    """A pickle of this calls ``print``."""

    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize(
    ("content", "reason"), [({"a": Call()}, "needs print"), ([torch.ones(1)], "no tensors by name"), ({}, "no tensors")]
)
def test_a_pickle_with_anything_but_tensors_by_name_is_refused_and_not_run(tmp_path, capsys, content, reason):
    torch.save(content, tmp_path / "final.pt")
    assert reason in refused(read_tensors, tmp_path)
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["final.pt", "final.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in refused(read_tensors, tmp_path)


def test_dicts_nested_without_end_are_refused(tmp_path):
    depth = 5000  # Python writes no such pickle, but reads it
    pickle = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"N" + b"s" * depth + b"."
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "other.pt") as old, zipfile.ZipFile(tmp_path / "final.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle if name.endswith("data.pkl") else old.read(name))
    assert "nested too deeply" in refused(read_tensors, tmp_path)


def test_an_archive_that_is_compressed_or_whose_pickle_is_large_is_refused(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "other.pt") as old, zipfile.ZipFile(tmp_path / "final.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02" + b"(" * 10**7 if name.endswith("data.pkl") else old.read(name))
    assert (tmp_path / "final.pt").stat().st_size < 20_000
    assert "compressed archive" in refused(read_tensors, tmp_path)
    (tmp_path / "other.pt").rename(tmp_path / "final.pt")
    assert read_tensors(tmp_path)["a"].tolist() == [0, 0, 0]
    monkeypatch.setitem(LIMITS, "pickle", 20)
    assert "its pickle has more than 20 bytes" in refused(read_tensors, tmp_path)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=9), st.floats(0, 1))
def test_a_damaged_archive_is_read_or_refused(tmp_path, junk, changes, part):
    torch.save({"a": torch.zeros(3), "b": {"c": torch.ones(2, 2)}}, tmp_path / "final.pt")
    content = bytearray((tmp_path / "final.pt").read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    for damaged in (junk, bytes(content), bytes(content[: int(len(content) * part)])):
        (tmp_path / "final.pt").write_bytes(damaged)
        try:
            assert all(torch.is_tensor(x) for x in read_tensors(tmp_path).values())
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 400


# ---- into a module


def small():
    with torch.device("meta"):
        return nn.Linear(3, 5)


def test_a_module_is_filled_with_tensors_of_the_wanted_dtype_without_gradients(tmp_path):
    module = small()
    tensors = {"weight": torch.randn(5, 3), "bias": torch.randn(5)}
    fill_module(module, tensors, tmp_path, torch.bfloat16, "cpu")
    assert module.weight.equal(tensors["weight"].bfloat16()) and module.bias.equal(tensors["bias"].bfloat16())
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"weight": (5, 3)}, "missing: bias"),
        ({"weight": (5, 3), "bias": (5,), "scale": (5,)}, "surplus: scale"),
        ({"weight": (3, 5), "bias": (5,)}, "misshapen: weight [3, 5], expected [5, 3]"),
        ({"weight": (3, 5), "other": (5,)}, "missing: bias. surplus: other. misshapen: weight [3, 5], expected [5, 3]"),
    ],
)
def test_a_module_is_not_filled_if_a_name_or_a_shape_differs(tmp_path, tensors, reason):
    module = small()
    tensors = {name: torch.ones(shape) for name, shape in tensors.items()}
    message = refused(fill_module, module, tensors, tmp_path, torch.float32, "cpu")
    assert message == f"{tmp_path} does not match its model.json: {reason}"
    assert module.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn, torch.bool, torch.complex64])
def test_a_module_is_not_filled_with_numbers_that_are_not_floating(tmp_path, dtype):
    tensors = {"weight": torch.zeros(5, 3, dtype=dtype), "bias": torch.zeros(5)}
    message = refused(fill_module, small(), tensors, tmp_path, torch.float32, "cpu")
    assert message == f"{tmp_path} does not match its model.json: not floating: weight {dtype}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_when_asked(tmp_path, value):
    tensors = {"weight": torch.ones(5, 3), "bias": torch.tensor([1.0, 2.0, value, 3.0, 4.0])}
    fill_module(small(), tensors, tmp_path, torch.float32, "cpu")
    message = refused(fill_module, small(), tensors, tmp_path, torch.float32, "cpu", True)
    assert message == f"{tmp_path}: 'bias' has values that are NaN or infinite: the file is damaged"
