"""From a folder to a model: which folder, which options, and what is refused before anything is read."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN

from vita_ref import Vita
from vita_ref.loading import demo_folder, find_speech


def test_without_a_folder_the_demo_is_loaded():
    assert Vita.from_pretrained().config == Vita.from_pretrained(demo_folder()).config


def test_a_loaded_model_is_in_eval_mode_and_in_the_dtype_that_was_asked_for():
    vita = Vita.from_pretrained(dtype=torch.float16)
    assert not vita.training and {p.dtype for p in vita.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    "options, named",
    [({"quantize": "int3"}, "'int3'"), ({"kernels": "faster"}, "'faster'"), ({"quantize": "int8", "pack": True}, "packed")],
)
def test_an_unknown_option_is_refused_before_the_folder_is_read(tmp_path, options, named):
    with pytest.raises(ValueError, match=named):
        Vita.from_pretrained(tmp_path / "nowhere", **options)


def test_speech_weights_are_found_in_the_folder_or_beside_it_or_where_they_are_named(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    assert find_speech(folder) is None and find_speech(folder, tmp_path) == tmp_path
    for place in (tmp_path / "speech", folder / "vita_tts_ckpt"):  # the one in the folder is preferred
        (place / "decoder").mkdir(parents=True)
        (place / "decoder" / "model.json").write_text("[]")
        assert find_speech(folder) == place


def test_the_vocabulary_of_a_vita_folder_is_that_of_its_weights(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "vita")
    config = json.loads((tmp_path / "vita" / "config.json").read_text())
    rows = config["vocab_size"]
    (tmp_path / "vita" / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 7}))
    assert Vita.from_pretrained(tmp_path / "vita").config.decoder.vocab_size == rows
