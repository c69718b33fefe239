"""Weights whose numbers or names are not those of the config: dtypes, stored heads, tables, counts, NaN."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_folders import QWEN2, write_folder

from vita_ref import Vita
from vita_ref.analysis.budget import meta_model
from vita_ref.files import checkpoint
from vita_ref.files.folders import read_config
from vita_ref.files.names import PREFIXES

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = torch.arange(9)[None]
few = settings(max_examples=25, deadline=None, derandomize=True)


def write(folder, tied, change=None):
    """A small Qwen2 folder with random weights; ``change`` gets the dict of its tensors."""
    write_folder(Path(folder), QWEN2 | {"tie_word_embeddings": tied})
    with torch.device("meta"):
        vita = Vita(read_config(folder))
    state, generator = vita.state_dict(), torch.Generator().manual_seed(0)
    names = checkpoint.module_names(vita, PREFIXES)
    tensors = {name: torch.randn(state[own].shape, generator=generator) for name, own in names.items()}
    if change is not None:
        change(tensors)
    save_file(tensors, Path(folder) / "model.safetensors")
    return tensors


def refused(folder, **options):
    """The message with which loading a folder is refused; a dry run says the same."""
    with pytest.raises(ValueError) as error:
        Vita.from_pretrained(folder, **options)
    if not options:
        with pytest.raises(ValueError) as other:
            meta_model(folder)
        assert str(other.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- dtypes

OTHER = [torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
SHORT = {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL"}
SHORT |= {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


@few
@given(st.data(), st.sampled_from(OTHER))
def test_a_weight_of_another_dtype_is_refused_with_its_name_and_dtype(data, dtype):
    with tempfile.TemporaryDirectory() as folder:
        tensors = write(folder, False)
        name = data.draw(st.sampled_from(sorted(tensors)))
        save_file(tensors | {name: tensors[name].to(dtype)}, Path(folder) / "model.safetensors")
        message = refused(folder)
    assert f"dtype not read here: {name} {SHORT[dtype]}, expected BF16" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_floating_weights_are_read(tmp_path, dtype):
    tensors = write(tmp_path, False)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert Vita.from_pretrained(tmp_path).decoder.norm.weight.equal(tensors["model.norm.weight"].to(dtype).float())


# ---- heads


def test_a_tied_folder_that_stores_an_equal_head_is_the_one_without_it(tmp_path):
    write(tmp_path / "a", True)
    write(tmp_path / "b", True, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].clone()}))
    one, other = (Vita.from_pretrained(tmp_path / name) for name in "ab")
    assert one.config == other.config and other.config.decoder.tie_word_embeddings
    assert one(IDS).logits.equal(other(IDS).logits)


def test_a_tied_folder_that_stores_another_head_uses_it(tmp_path):
    tensors = write(tmp_path / "a", True, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS].flip(0)}))
    vita = Vita.from_pretrained(tmp_path / "a")
    assert not vita.config.decoder.tie_word_embeddings and vita.decoder.lm_head.weight.equal(tensors[HEAD])
    write(tmp_path / "b", False, lambda other: other.update(tensors))
    assert vita(IDS).logits.equal(Vita.from_pretrained(tmp_path / "b")(IDS).logits)


@pytest.mark.parametrize("rows", [1, 10, 96, 97, 200])
def test_heads_are_compared_to_their_last_row(tmp_path, rows, monkeypatch):
    """The comparison reads blocks of rows; a difference in the last row is found with every size of block."""
    monkeypatch.setattr(checkpoint, "_BLOCK", rows * QWEN2["hidden_size"])

    def change(tensors):
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
        tensors[HEAD][-1, -1] += 1

    write(tmp_path, True, change)
    assert not Vita.from_pretrained(tmp_path).config.decoder.tie_word_embeddings


def test_a_head_of_another_shape_is_refused_by_name(tmp_path):
    write(tmp_path, True, lambda tensors: tensors.update({HEAD: tensors[EMBEDDINGS][:90].clone()}))
    assert "misshapen: lm_head.weight [90, 24], expected [97, 24]" in refused(tmp_path)


# ---- tables and counts


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_stored_tables_of_rotary_positions_are_ignored(tmp_path, name):
    write(tmp_path / "a", False)
    write(tmp_path / "b", False, lambda tensors: tensors.update({name: torch.rand(2)}))
    one, other = (Vita.from_pretrained(tmp_path / folder)(IDS).logits for folder in "ab")
    assert one.equal(other)


@pytest.mark.parametrize("layers", [60, 1000])
def test_more_layers_than_tensors_are_refused_before_anything_is_built(tmp_path, layers, monkeypatch):
    write(tmp_path, False)
    write_folder(tmp_path, QWEN2 | {"tie_word_embeddings": False, "num_hidden_layers": layers})
    monkeypatch.setattr(Vita, "__init__", lambda *_: pytest.fail("it was built"))
    message = refused(tmp_path)
    assert f"num_hidden_layers of the decoder is {layers}" in message and "only 39 tensors" in message


# ---- NaN


@few
@given(st.data(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.booleans())
def test_weights_that_are_not_finite_are_refused_when_asked(data, value, mmap):
    with tempfile.TemporaryDirectory() as folder:
        tensors = write(folder, False)
        assert Vita.from_pretrained(folder, mmap=mmap, check_finite=True)
        name = data.draw(st.sampled_from(sorted(tensors)))
        place = data.draw(st.integers(0, tensors[name].numel() - 1))
        tensors[name].view(-1)[place] = value
        save_file(tensors, Path(folder) / "model.safetensors")
        assert Vita.from_pretrained(folder, mmap=mmap)
        assert f"'{name}' has values that are NaN or infinite" in refused(folder, mmap=mmap, check_finite=True)


# ---- names in files


@few
@given(st.text(min_size=1, max_size=400))
def test_a_surplus_tensor_of_any_name_is_refused_in_one_line(name):
    with tempfile.TemporaryDirectory() as folder:
        tensors = write(folder, False)
        try:
            save_file(tensors | {name: torch.zeros(1)}, Path(folder) / "model.safetensors")
            load_file(Path(folder) / "model.safetensors")
        except Exception:  # noqa: BLE001, a name that the library cannot store
            return
        if name not in tensors:
            message = refused(folder)
            assert message.isprintable() and "surplus: " in message and len(message) < 1000


def test_every_pair_of_hostile_entries_of_an_index_is_refused(tmp_path):
    values = [None, 5, [], {}, "", "nowhere", "../x", "x" * 5000, "\x00", "\ud800", ["model.safetensors"]]
    for one, other in itertools.product(values, repeat=2):
        write_folder(tmp_path, QWEN2, **{checkpoint._INDEX.removesuffix(".json"): {"weight_map": {"a": one, "b": other}}})
        with pytest.raises(ValueError) as error:
            checkpoint.find_tensors(tmp_path)
        assert str(error.value).isprintable() and len(str(error.value)) < 1000
