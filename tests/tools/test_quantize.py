"""Quantising a folder once: it answers as one that is quantised while it loads, and its error is the measured one."""

import json

import pytest
import torch
from conftest import GOLDEN
from torch import nn

from tools import make_checkpoint, quantize
from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig

FOLDER = GOLDEN / "checkpoint"


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_folder_gives_the_logits_of_quantising_while_loading(tmp_path, capsys, method, dtype):
    assert quantize.main([str(FOLDER), str(tmp_path / "small"), "--to", method, "--dtype", dtype]) == 0
    assert "relative error" in capsys.readouterr().out
    once, now = Vita.from_pretrained(tmp_path / "small"), Vita.from_pretrained(FOLDER, quantize=method, dtype=dtype)
    ids = torch.arange(1, 12)[None]
    with torch.inference_mode():
        assert once(ids).logits.equal(now(ids).logits)
    assert once.decoder.layers[0].self_attn.q_proj.weight.nbytes == now.decoder.layers[0].self_attn.q_proj.weight.nbytes


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_the_error_in_the_config_is_that_of_the_weights(tmp_path, method):
    plain = Vita.from_pretrained(FOLDER)
    _, error = quantize.convert(FOLDER, tmp_path / "small", method)
    small = Vita.from_pretrained(tmp_path / "small")
    before = [m for m in plain.decoder.modules() if isinstance(m, nn.Linear)]
    after = [m for m in small.decoder.modules() if hasattr(m, "stored_tensors")]
    changes = weights = 0.0
    for a, b in zip(before, after, strict=True):
        bias = 0 if b.bias is None else b.bias
        changes += (b(torch.eye(a.in_features)) - bias - a.weight.T).square().sum().item()  # the rounded weight itself
        weights += a.weight.square().sum().item()
    assert error == pytest.approx((changes / weights) ** 0.5, rel=1e-4)
    assert small.config.quantization.weight_error == pytest.approx(error, rel=1e-3)


def test_a_vita_folder_becomes_one_of_this_projects_own_without_the_folders_of_its_towers(tmp_path):
    preset = VitaConfig.preset("vita-1.5")
    golden = Vita.from_pretrained(FOLDER).config
    decoder = DecoderConfig(300, 48, 80, 2, 6, 2, 8)
    config = VitaConfig(decoder, golden.vision, golden.audio, eos_token_ids=(299,), template="vita", dtype="bfloat16",
                        tokenizer_model_max_length=preset.tokenizer_model_max_length)  # fmt: skip
    make_checkpoint.write(tmp_path / "vita", "vita-1.5", config=config)
    quantize.convert(tmp_path / "vita", tmp_path / "small", "int4")
    once, now = Vita.from_pretrained(tmp_path / "small"), Vita.from_pretrained(tmp_path / "vita", quantize="int4")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["model_type"] == "vita_ref"
    pixels = torch.randn(1, 3, *[golden.vision.image_size] * 2, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, -200, 2]])
    with torch.inference_mode():
        assert once(ids, images=pixels).logits.equal(now(ids, images=pixels).logits)
    assert once.tokenizer("a").input_ids == now.tokenizer("a").input_ids and once.config.template == "vita"


def test_errors_are_one_line_and_status_2(tmp_path, capsys):
    quantize.convert(FOLDER, tmp_path / "small", "int8")
    for arguments, message in (
        ([str(tmp_path / "small"), str(tmp_path / "again"), "--to", "int8"], "quantised to int8 already"),
        ([str(FOLDER), str(tmp_path / "small"), "--to", "int4"], "exists and is not an empty folder"),
        ([str(tmp_path / "no"), str(tmp_path / "new"), "--to", "int4"], "no"),
    ):
        status = quantize.main(arguments)
        error = capsys.readouterr().err
        assert status == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_a_random_quantised_folder_is_written_as_such_and_loads(tmp_path, method):
    config = VitaConfig(DecoderConfig(600, 64, 80, 2, 4, 2, 16), eos_token_ids=(599,), dtype="bfloat16")
    make_checkpoint.write(tmp_path, "qwen2-7b", config=config, quantize=method)
    vita = Vita.from_pretrained(tmp_path)
    assert vita.config.quantization.method == method
    with torch.inference_mode():
        weight = vita.decoder.layers[0].mlp.gate_proj(torch.eye(64)).T  # [80, 64], as numbers
        logits = vita(torch.arange(1, 9)[None]).logits
    assert 0.5 / 8 < weight.std() < 2 / 8 and weight.mean().abs() < 0.1 / 8  # 1 / sqrt(inputs), as unquantised ones
    assert logits.isfinite().all() and logits.std() > 0.1
