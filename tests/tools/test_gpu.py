"""The steps of tools/bench/gpu.sh on the processor, since no other device is at hand: they run, and they find a difference."""

import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from command_line import write_tiny
from conftest import GOLDEN

from tools.bench import gpu
from vita_ref import Vita

SCRIPT = Path(gpu.__file__).with_name("gpu.sh")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random model in the place of the demo."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("step", ["golden", "tokens"])
def test_a_step_that_compares_passes_and_fails_if_the_device_computes_something_else(step, tiny, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "NEW", 8)
    plain, calls = Vita.from_pretrained, []

    def same(*folder, **options):
        return plain(*(folder or (tiny,)), **options)

    def other(*folder, **options):
        vita = same(*folder, **options)
        calls.append(0)
        if step == "golden" or len(calls) % 2 == 0:  # the second of each pair is the one on the device
            vita.decoder.norm.weight.data = -vita.decoder.norm.weight
        return vita

    with patch.object(Vita, "from_pretrained", same):
        assert gpu.main([step, "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "ok" in printed and "OFF" not in printed
    with patch.object(Vita, "from_pretrained", other):
        assert gpu.main([step, "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "OFF" in printed and (step == "golden" or printed.count("answers, ") == printed.count("OFF") == 3)


def test_rates_and_real_size_print_what_they_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch, "randint", lambda high, shape, **options: torch.ones(1, 5, dtype=torch.long))
    assert gpu.main(["rates", "cpu", str(GOLDEN / "checkpoint")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:3]] == ["ours, bfloat16", "ours, int8", "ours, int4"]
    monkeypatch.undo()
    assert gpu.main(["size", "cpu", "weights/demo"]) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_the_script_is_valid_and_names_the_steps():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text()
    assert all(f"tools.bench.gpu {step}" in text for step in gpu.STEPS)
