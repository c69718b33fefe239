"""Weights learn after one line, with the script of tools/README.md; before it they do not."""

import re
from pathlib import Path

import pytest
import torch

from vita_ref import Vita

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "tools/README.md").read_text(encoding="utf-8")
[CODE] = re.findall(r"```python\n(.*?)```", PAGE.partition("## One training step")[2].partition("\n## ")[0], re.DOTALL)
BYTES = (ROOT / "weights/demo/model.safetensors").stat().st_mtime_ns


@pytest.fixture(scope="module")
def trained():
    """The names of the script after it ran, and the loss of four more steps."""
    names, before = {}, Path.cwd()
    import os

    os.chdir(ROOT)
    try:
        exec(CODE, names)  # noqa: S102
    finally:
        os.chdir(before)
    losses = [float(names["loss"])]
    for _ in range(4):
        names["optimizer"].zero_grad()
        loss = names["vita"](names["ids"], images=names["question"].images, labels=names["labels"]).loss
        loss.backward()
        names["optimizer"].step()
        losses.append(float(loss))
    return names, losses


def test_the_script_has_at_most_fifteen_lines():
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 15


def test_loaded_weights_do_not_record_gradients_until_that_line():
    vita = Vita.from_pretrained()
    assert not any(p.requires_grad for p in vita.parameters()) and not vita.training
    vita.train().requires_grad_()
    assert all(p.requires_grad for p in vita.parameters()) and vita.training


def test_a_step_changes_every_part_that_the_request_used(trained):
    names, _ = trained
    loaded = Vita.from_pretrained(dtype=torch.float32).state_dict()
    changed = {name for name, value in names["vita"].state_dict().items() if not value.equal(loaded[name])}
    for part in ("vision.encoder.layers.0.attn.qkv.weight", "projector.0.weight", "decoder.layers.0.mlp.up_proj.weight"):
        assert part in changed
    assert not any(name.startswith("audio.") for name in changed), "there was no sound"


def test_the_loss_falls_with_every_step(trained):
    _, losses = trained
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] / 2


def test_the_gradient_is_the_slope_of_the_loss(trained):
    """A step of h along a weight changes the loss by h times its gradient."""
    names, _ = trained
    vita, call = names["vita"], {"images": names["question"].images, "labels": names["labels"]}
    weight = vita.decoder.layers[1].mlp.down_proj.weight
    vita.zero_grad()
    vita(names["ids"], **call).loss.backward()
    place = divmod(int(weight.grad.abs().argmax()), weight.shape[1])
    slope, h = float(weight.grad[place]), 0.01
    with torch.no_grad():
        around = []
        for sign in (1, -1):
            weight[place] += sign * h
            around.append(float(vita(names["ids"], **call).loss))
            weight[place] -= sign * h
    assert (around[0] - around[1]) / (2 * h) == pytest.approx(slope, rel=0.05)


def test_training_leaves_the_file_of_the_weights_as_it_was(trained):
    assert (ROOT / "weights/demo/model.safetensors").stat().st_mtime_ns == BYTES
    assert "blue" in Vita.from_pretrained().respond("What color is the star?", images=[ROOT / "weights/demo/example.jpg"]).lower()


def test_the_trained_model_can_be_used_again(trained):
    names, _ = trained
    vita = names["vita"].eval().requires_grad_(False)
    assert isinstance(vita.respond("What color is the star?", images=[ROOT / "weights/demo/example.jpg"]), str)
