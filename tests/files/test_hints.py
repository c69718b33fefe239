"""Names and files that are nearly right: the message says what they are and how to get the right ones."""

import io
import json
import os
import re
import shutil

import pytest
import torch
from command_line import call, check_user_error, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vita_ref import Vita
from vita_ref.fbank import load_sound
from vita_ref.files.folders import read_config
from vita_ref.files.hints import check_is_folder, check_no_address, pointer_reason
from vita_ref.files.speech import read_tensors
from vita_ref.files.tokenizer import load_tokenizer
from vita_ref.image import open_image
from vita_ref.video import load_frames

few = settings(max_examples=60, deadline=None, derandomize=True)


def pointer(size):
    """What Git LFS leaves in place of a file of so many bytes."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0f' * 32}\nsize {size}\n".encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def load_file_object(path):
    return load_sound(io.BytesIO(path.read_bytes()))


READERS = {  # suffix -> what reads it
    **dict.fromkeys((".png", ".jpg", ".webp"), open_image),
    **dict.fromkeys((".wav", ".flac", ".mp3", ".ogg"), load_sound),
    **dict.fromkeys((".mp4", ".gif", ".mkv"), load_frames),
    ".from_memory": load_file_object,
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("size", [0, 12345, 10**12])
def test_a_pointer_of_git_lfs_in_place_of_a_medium_is_named(tmp_path, suffix, size):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pointer(size))
    with pytest.raises(ValueError, match="pointer of Git LFS.*git lfs pull") as caught:
        READERS[suffix](path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.*"])
def test_a_pointer_in_place_of_any_file_of_a_checkpoint_is_named_with_the_file(folder, tmp_path, file):
    copy = shutil.copytree(folder, tmp_path / "copy")
    [path] = copy.glob(file)
    path.write_bytes(pointer(5_000_000))
    status, out, err = call("--model", copy, "hi")
    check_user_error(status, out, err)
    assert path.name in err and "git lfs pull" in err


@pytest.mark.parametrize("file", ["final.pt", "final.safetensors"])
def test_a_pointer_in_place_of_speech_weights_is_named(tmp_path, file):
    (tmp_path / file).write_bytes(pointer(7))
    with pytest.raises(ValueError, match=f"{file}.*git lfs pull"):
        read_tensors(tmp_path)


@few
@given(st.binary(max_size=80))
def test_no_other_content_is_called_a_pointer(content):
    assert pointer_reason(content) is None
    assert pointer_reason(pointer(3) + content)


# ---- addresses and names on a hub

schemes = st.sampled_from(["http", "https", "HTTPS", "s3", "ftp", "gs", "hf"])
tails = st.text("abcXYZ019._-/%?=&", min_size=1, max_size=30)


@few
@given(schemes, tails)
def test_an_address_is_never_opened_and_the_message_says_how_to_get_it(scheme, tail):
    with pytest.raises(ValueError, match="it is an address, and nothing is downloaded here: download the file"):
        check_no_address(f"{scheme}://{tail}")


@few
@given(st.text("abcXYZ019._- /", min_size=1, max_size=30))
def test_a_path_is_no_address(path):
    check_no_address(path)


def test_file_addresses_and_colons_in_names(tmp_path):
    with pytest.raises(ValueError, match="without file://"):
        check_no_address("file:///tmp/x.png")
    for path in (r"C:\x.png", "C:/x.png", "a:b.png", tmp_path):
        check_no_address(path)


@pytest.mark.parametrize("flag", ["--image", "--audio", "--video", "--model"])
def test_an_address_on_the_command_line_is_refused_with_what_to_do(folder, flag):
    given = [] if flag == "--model" else ["--model", folder]
    status, out, err = call(*given, "hi", flag, "https://example.org/cat.jpg")
    check_user_error(status, out, err)
    assert re.search("https:/+example.org/cat.jpg", err) or flag == "--audio"
    assert "download" in err or "cannot take sounds" in err


def test_an_address_in_a_batch_is_not_looked_for_beside_the_file(folder, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"images": ["http://a.org/b.png"]}\n{"video": "https://a.org/b.mp4"}')
    status, out, _ = call("--model", folder, "--batch", tmp_path / "b.jsonl")
    errors = [json.loads(line)["error"] for line in out.splitlines()]
    assert status == 2 and len(errors) == 2
    assert all(re.search(r"'https?://a\.org/b\.\w+': it is an address", error) for error in errors)


words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)


@few
@given(words, words)
def test_a_name_on_the_hub_is_answered_with_the_command_that_downloads_it(owner, name):
    if os.path.exists(f"{owner}/{name}"):
        return
    with pytest.raises(ValueError) as caught:
        check_is_folder(f"{owner}/{name}")
    assert f"hf download {owner}/{name} --local-dir {name}; then give {name}" in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "/tmp/a/b/nowhere", "./a/b", "a/b/c"])
def test_another_missing_folder_is_not_taken_for_a_name_on_the_hub(name):
    with pytest.raises(ValueError, match="there is no such folder$"):
        check_is_folder(name)


def test_a_file_in_place_of_the_folder_is_named_so(folder):
    with pytest.raises(ValueError, match="it is a file; give the folder that holds it"):
        Vita.from_pretrained(folder / "config.json")


# ---- other weights, and dtypes as old files write them


@pytest.mark.parametrize("file, hint", [
    ("pytorch_model.bin", "pytorch_model.bin is a pickle.*convert it to safetensors"),
    ("pytorch_model.bin.index.json", "is a pickle"),
    ("consolidated.00.pth", "is a pickle"),
    ("model-Q4_K_M.gguf", "llama.cpp"),
])  # fmt: skip
def test_a_folder_with_weights_of_another_format_only_says_which_and_how_to_convert_them(folder, tmp_path, file, hint):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model.safetensors.*[^.]$"):
        Vita.from_pretrained(copy)
    (copy / file).write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=f"no model.safetensors.*{hint}"):
        Vita.from_pretrained(copy)


QWEN2 = {
    "model_type": "qwen2", "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_every_spelling_of_a_dtype_in_a_config_is_read(tmp_path, key, name):
    for spelling in (name, f"torch.{name}"):
        (tmp_path / "config.json").write_text(json.dumps(QWEN2 | {key: spelling}))
        assert read_config(tmp_path).dtype == name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_automatic_dtype_is_that_of_the_weights(tmp_path, dtype):
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | {"torch_dtype": "auto"}))
    assert read_config(tmp_path).dtype == "float32"  # no weights yet, as for a dry run
    save_file({"model.embed_tokens.weight": torch.zeros(20, 8, dtype=dtype)}, tmp_path / "model.safetensors")
    assert read_config(tmp_path).dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("wrong", ["torch.int8", "half", 16, None, "torch.", ["float32"]])
def test_another_dtype_in_a_config_is_refused_by_name_or_the_default(tmp_path, wrong):
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | {"torch_dtype": wrong}))
    if wrong is None:
        assert read_config(tmp_path).dtype == "float32"
        return
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16"):
        read_config(tmp_path)


def test_the_tokenizer_of_the_tiny_folder_is_read(folder):
    assert load_tokenizer(folder) is not None
