"""A process that makes the same calls again and again and prints which bits came: the test starts two of it.

    python tests/scale/reproduce.py FOLDER TIMES CLASS...

The output is one JSON object: class of processor, kernels, dtype and call -> the digests of all results.
"""

import hashlib
import json
import sys
from unittest.mock import patch

import torch

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig
from vita_ref.scale import products

FEW = 3  # calls with the products of other classes and with those that "auto" chooses; TIMES with this processor's own
PROMPTS = {"one row": (1, 1), "four rows": (2, 2), "twelve rows": (3, 4), "many rows": (3, 8)}
GENERATED = {"one row generated": (1, 1), "four rows generated": (4, 5)}


def large_decoder(folder):
    """Writes a random checkpoint without towers whose matrices are all large enough for the table."""
    config = DecoderConfig(402, 320, 352, 1, 5, 5, 64, tie_word_embeddings=True)
    assert min(config.hidden_size**2, config.vocab_size * config.hidden_size) > products.LARGE
    whole = VitaConfig(config, eos_token_ids=(401,), template="chatml")
    make_checkpoint.write(folder, "demo", "float32", seed=1, config=whole)
    return folder


def prompt(shape):
    return torch.randint(400, shape, generator=torch.Generator().manual_seed(2))


def digest(tensors):
    """The bits of some tensors, in short."""
    return hashlib.sha256(b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)).hexdigest()[:16]


def generated(vita, ids):
    """The logits of every step of a generation, and the ids."""
    steps = []
    hook = vita.decoder.lm_head.register_forward_hook(lambda module, inputs, logits: steps.append(logits))
    try:
        steps.append(vita.generate(ids, max_new_tokens=2, eos_token_id=()))
    finally:
        hook.remove()
    assert len(steps) == 3
    return steps


def results(folder, most, kinds):
    """All digests, as sorted lists without repetition."""
    found, own = {}, products.processor_class()
    for kernels, dtype in ((k, d) for k in ("plain", "auto", "fast") for d in (torch.float32, torch.bfloat16)):
        vita = Vita.from_pretrained(folder, dtype=dtype, kernels=kernels)
        for kind in kinds[:1] if kernels == "plain" else kinds:  # the class does not matter to plain products
            times = most if kernels == "plain" or (kernels == "fast" and kind == own) else FEW
            with torch.inference_mode(), patch("vita_ref.scale.products.processor_class", lambda kind=kind: kind):
                for name, shape in PROMPTS.items():
                    found[f"{kind}, {kernels}, {dtype}, {name}"] = {digest([vita(prompt(shape)).logits]) for _ in range(times)}
                for name, shape in GENERATED.items():
                    found[f"{kind}, {kernels}, {dtype}, {name}"] = {digest(generated(vita, prompt(shape))) for _ in range(times)}
    return {name: sorted(digests) for name, digests in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps(results(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
