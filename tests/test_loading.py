"""From a folder to a model: the folder, the options, and what is refused before the folder is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from vita_ref import Vita
from vita_ref.files.folders import read_config
from vita_ref.loading import as_dtype, demo_folder, find_speech
from vita_ref.scale.products import FastLinear

DEMO = Path(__file__).parents[1] / "weights" / "demo"


@pytest.fixture(scope="module")
def stored():
    """The tensors of the demo checkpoint by their names in the file."""
    return load_file(DEMO / "model.safetensors")


def test_without_a_folder_the_demo_is_loaded(stored):
    assert demo_folder() == DEMO
    vita = Vita.from_pretrained()
    assert vita.config == read_config(DEMO)
    assert vita.decoder.norm.weight.equal(stored["model.norm.weight"].to(vita.decoder.norm.weight.dtype))


def test_a_loaded_model_is_in_eval_mode_and_has_the_requested_dtype(stored):
    vita = Vita.from_pretrained(dtype=torch.float16)
    assert not any(module.training for module in vita.modules())
    assert {p.dtype for p in vita.parameters()} == {torch.float16}
    assert vita.decoder.embed_tokens.weight.equal(stored["model.embed_tokens.weight"].half())


@pytest.mark.parametrize("names, dtype", [
    (["float32", "fp32", "float", "torch.float32", torch.float32], torch.float32),
    (["bfloat16", "bf16", "BF16", torch.bfloat16], torch.bfloat16),
    (["float16", "fp16", "half", "torch.half"], torch.float16),
    (["float64", "double"], torch.float64),
    ([None, "auto"], None),
])  # fmt: skip
def test_a_dtype_may_be_given_by_name(names, dtype):
    assert [as_dtype(name) for name in names] == [dtype] * len(names)


def test_a_model_is_loaded_in_the_dtype_of_the_given_name():
    assert Vita.from_pretrained(dtype="fp16").decoder.norm.weight.dtype == torch.float16
    assert Vita.from_pretrained(None, "auto").decoder.norm.weight.dtype == Vita.from_pretrained().decoder.norm.weight.dtype


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "int8"}, "dtype must be a torch dtype or one of float32, .*, got 'int8'"),
        ({"dtype": torch.int8}, "dtype must be .*, got torch.int8"),
        ({"dtype": 32}, "dtype must be .*, got 32"),
        ({"device": "banana"}, "the device 'banana' cannot be used"),
        ({"device": "meta:0"}, "the device meta has no values"),
        ({"quantize": "int3"}, "quantize must be None, 'int8' or 'int4', got 'int3'"),
        ({"kernels": "faster"}, "kernels must be one of auto, plain, fast, got 'faster'"),
        ({"kernels": None}, "kernels must be one of auto, plain, fast, got None"),
        ({"quantize": "int8", "pack": True}, "int8 weights cannot be packed"),
        ({"quantize": "int4", "pack": True}, "int4 weights cannot be packed"),
    ],
)
def test_an_unknown_option_is_refused_before_the_folder_is_read(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Vita.from_pretrained(tmp_path / "nowhere", **options)


@pytest.mark.parametrize("kernels, always", [("plain", None), ("auto", False), ("fast", True)])
def test_kernels_chooses_which_matrices_have_the_products_of_the_table(kernels, always):
    """With "auto" all parts have them, and use them within `generation_products` only."""
    vita = Vita.from_pretrained(kernels=kernels)
    for part in (vita.decoder, vita.vision, vita.projector, vita.audio):
        kinds = {(type(m), getattr(m, "always", None)) for m in part.modules() if isinstance(m, torch.nn.Linear)}
        assert kinds == ({(torch.nn.Linear, None)} if always is None else {(FastLinear, always)})


@pytest.mark.parametrize("folder", [5, "", b"demo", ["demo"]])
def test_a_folder_that_is_no_path_is_refused(folder):
    with pytest.raises(ValueError, match="a checkpoint folder must be a path, or None for the demo, got "):
        Vita.from_pretrained(folder)


def test_progress_counts_the_tensors_of_the_checkpoint(stored):
    counts = []
    Vita.from_pretrained(progress=lambda done, total: counts.append((done, total)))
    assert counts[-1][0] == counts[-1][1] <= len(stored) and counts == sorted(counts)


def test_speech_weights_are_found_in_the_given_folder_in_the_checkpoint_or_beside_it(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert find_speech(folder) is None and find_speech(folder, tmp_path) == tmp_path
    for place in (tmp_path / "speech", folder / "speech", tmp_path / "vita_tts_ckpt", folder / "vita_tts_ckpt"):
        # each has priority over those before it
        (place / "decoder").mkdir(parents=True)
        (place / "decoder" / "model.json").write_text("[]")
        assert find_speech(folder) == place


def test_the_vocabulary_size_of_a_vita_folder_is_that_of_its_weights(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "vita")
    config = json.loads((tmp_path / "vita" / "config.json").read_text())
    rows = config["vocab_size"]
    (tmp_path / "vita" / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 7}))
    assert Vita.from_pretrained(tmp_path / "vita").config.decoder.vocab_size == rows
