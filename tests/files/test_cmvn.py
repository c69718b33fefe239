"""The statistics file of the audio encoder. Run: ``pytest tests/files/test_cmvn.py``"""

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from vita_ref.files.cmvn import read_cmvn

FOLDER = "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"
PREFIX = "model.audio_encoder.encoder.global_cmvn."


@pytest.mark.parametrize("is_json, folder", [(True, "checkpoint"), (False, "variants/audio_batchnorm")])
def test_the_statistics_in_the_file_are_those_of_the_checkpoint_beside_it(is_json, folder):
    tensors = {}
    for file in sorted((GOLDEN / folder).glob("*.safetensors")):
        tensors |= load_file(file)
    mean, istd = read_cmvn(GOLDEN / folder / FOLDER / "global_cmvn", is_json)
    torch.testing.assert_close(mean, tensors[PREFIX + "mean"])
    torch.testing.assert_close(istd, tensors[PREFIX + "istd"])
    with pytest.raises(ValueError, match="cannot read cmvn statistics from .*global_cmvn"):
        read_cmvn(GOLDEN / folder / FOLDER / "global_cmvn", not is_json)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="cannot read cmvn statistics from .*nothing"):
        read_cmvn(tmp_path / "nothing", is_json=True)
