"""A porter's walk: a checkpoint as "your port" would compute with it, with one wrong weight or a missing bias in it.

`write` makes such a folder from the demo weights. Its mistake is one that people make when they port a model, chosen by
number. The walk that finds it has four commands, which `WALK` lists.

Test: ``pytest tests/tools/test_lessons_more.py``
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from vita_ref.loading import demo_folder

TOWER = "model.vision_tower.vision_tower.encoder.layers"


class Port(NamedTuple):
    """A mistake of a port: what was done, the tensors that are wrong (``{}`` is a layer), and what changes them."""

    story: str
    names: tuple
    change: object


def exchanged_thirds(w):
    """Queries and keys in each other's place."""
    q, k, v = w.chunk(3)
    return torch.cat([k, q, v])


PORTS = {
    1: Port("a bias was left at zero, because the layer was made without one", ("model.layers.{}.self_attn.v_proj.bias",), torch.zeros_like),
    2: Port("a square matrix was stored transposed", ("model.layers.{}.self_attn.o_proj.weight",), lambda w: w.T.contiguous()),
    3: Port("queries and keys of one matrix were taken in the wrong order", (TOWER + ".{}.attn.qkv.weight",), exchanged_thirds),
    4: Port("a bias of the projector was forgotten", ("model.mm_projector.0.bias",), torch.zeros_like),
    5: Port("a layer scale was not loaded, and stayed at one", (TOWER + ".{}.ls2",), torch.ones_like),
    6: Port("two matrices of the same shape got each other's names",
            ("model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"), None),
}  # fmt: skip
WALK = """The port in {port} has a mistake in its weights. Four commands find it (from the project's folder):

    {python} {dump} {a} --image {image} --deep
    {python} {dump} {b} --image {image} --deep --model {port}
    {python} {dump} --compare {a} {b}
    {python} {run} port {number} --guess NAME{work}

The first two write every intermediate of one answer: of the reference, and of your port. The third prints which tensor is the
first that differs. Everything before it is right, so the mistake is in what computes it from what comes before: that is often one
matrix with its bias. NAME is that tensor's name in the checkpoint, such as model.layers.0.self_attn.q_proj.bias. The names are in
the project's files: a Linear called q_proj in `Attention` of vita_ref/decoder.py has a weight and, where its config says so, a bias."""


def wrong_names(number, names):
    """The names of the wrong tensors of a port: a layer in the middle of its part."""
    port = PORTS[number]
    found = []
    for pattern in port.names:
        start, _, end = pattern.partition("{}")
        layers = sorted({int(n[len(start) :].split(".")[0]) for n in names if n.startswith(start) and n.endswith(end)}) if end else []
        found.append(pattern.format(layers[len(layers) // 2]) if layers else pattern)
    return found


def write(number, folder):
    """Writes a port into a folder. Raises: ValueError if the demo weights have no such tensor."""
    folder, demo = Path(folder), demo_folder()
    tensors = load_file(demo / "model.safetensors")
    names = wrong_names(number, tensors)
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"the demo weights have no {missing[0]}: take another number")
    if PORTS[number].change is None:
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    else:
        tensors[names[0]] = PORTS[number].change(tensors[names[0]])
    folder.mkdir(parents=True, exist_ok=True)
    for file in demo.iterdir():
        if file.suffix in (".json", ".model"):
            shutil.copy(file, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return names


def guess(number, name):
    """Whether a name is that of a wrong tensor, and what to say."""
    with (demo_folder() / "model.safetensors").open("rb") as file:
        import json

        names = [n for n in json.loads(file.read(int.from_bytes(file.read(8), "little"))) if n != "__metadata__"]
    wrong = wrong_names(number, names)
    if name in wrong:
        return True, f"Found: {PORTS[number].story}."
    if name not in names:
        return False, f"The checkpoint has no tensor of that name. Names look like {names[len(names) // 2]}."
    near = any(name.rsplit(".", 2)[0] == other.rsplit(".", 2)[0] for other in wrong)
    return False, "Not that one, but very near." if near else "Not that one. Everything before the first tensor that is OFF is right."
