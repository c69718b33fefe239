"""Quantises a checkpoint folder once: python tools/quantize.py MODEL OUT --to int8|int4

OUT is a folder of this project's own kind: weights, config, tokenizer and speech weights, everything that
`Vita.from_pretrained(OUT)` needs, with no flag. The decoder's matrices are quantised as `--quantize` does; embeddings,
norms, biases, vision tower and audio encoder keep their values, in the dtype of the checkpoint or of --dtype. Tensors
are read, quantised and written one after the other: a folder of 16.6 GB needs about 4 GB of memory.

config.json says how the weights are stored, and the measured error: the root of the mean squared difference of all
quantised weights, over the root of their mean square.

Test: ``pytest tests/tools/test_quantize.py``
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from vita_ref import Vita
from vita_ref.cli.terminal import exit_status
from vita_ref.config import QuantizationConfig
from vita_ref.files import checkpoint
from vita_ref.files.folders import read_config
from vita_ref.files.names import PREFIXES, prefixes
from vita_ref.files.saving import write_folder
from vita_ref.loading import (
    as_dtype,
    as_folder,
    find_speech,
    unread_prefixes,
    with_stored_vocabulary,
)
from vita_ref.scale import int4, int8

ROWS = 1024  # of a matrix whose error is measured at a time


class Error:
    """The sums of squares of weights and of what quantising changed."""

    def __init__(self):
        self.weights = self.changes = 0.0

    def add(self, weight, method, tensors):
        """Adds one matrix; ``tensors`` are its quantised ones."""
        for start in range(0, len(weight), ROWS):
            rows = slice(start, start + ROWS)
            exact = weight[rows].float()
            if method == "int4":
                found = int4.dequantize(tensors["weight"][rows], tensors["weight_scale"][:, rows], weight.shape[1])
            else:
                found = tensors["weight"][rows] * tensors["weight_scale"][rows, None]
            self.weights += exact.square().sum().item()
            self.changes += (found - exact).square_().sum().item()

    @property
    def relative(self):
        return (self.changes / self.weights) ** 0.5 if self.weights else 0.0


def quantized(weight, method):
    """The tensors that stand for a matrix in the folder."""
    return dict(zip(("weight", "weight_scale"), (int4 if method == "int4" else int8).quantize(weight)))


def convert(model, out, method, dtype=None, vision_dir=None, audio_dir=None, progress=None):
    """Writes the quantised folder; returns its size in bytes and the relative error of the weights.

    Raises: ValueError if the checkpoint does not fit its config, or is quantised already.
    """
    folder, dtype = as_folder(model), as_dtype(dtype)
    config, files = read_config(folder, vision_dir=vision_dir, audio_dir=audio_dir), checkpoint.find_tensors(folder)
    if config.quantization:
        raise ValueError(f"{folder} is quantised to {config.quantization.method} already: name the original")
    table = prefixes(config, files)
    config = with_stored_vocabulary(checkpoint.stored_config(config, files, table), files)
    dtype = as_dtype(config.dtype) if dtype is None else dtype
    with torch.device("meta"):
        vita = Vita(config)
    names = checkpoint.check_fits(vita, table, files, unread_prefixes(config, table))
    new_names, groups = {own: name for name, own in checkpoint.module_names(vita, PREFIXES).items()}, checkpoint.pieces_of(names)
    matrices = {f"decoder.{n}.weight" for n, m in vita.decoder.named_modules() if isinstance(m, nn.Linear)}
    error, wanted, pieces, done = Error(), [name for name in files if name in names], {}, 0

    def tensors():
        nonlocal done
        for file in sorted({files[name] for name in wanted}):
            for name, stored in checkpoint.read_tensors(file, [n for n in wanted if files[n] == file], lambda _: False):
                checkpoint.check_finite_values(name, stored, file)
                value = stored.to(dtype if stored.is_floating_point() else stored.dtype, copy=True)
                own, value = names[name], checkpoint.joined(name, value, groups[names[name]], pieces)
                if value is not None and own in matrices:
                    parts = quantized(value, method)
                    error.add(value, method, parts)
                    yield from ((new_names[own].removesuffix("weight") + leaf, tensor) for leaf, tensor in parts.items())
                elif value is not None:
                    yield new_names[own], value
                del stored, value
                done += 1
                if progress:
                    progress(done, len(wanted))

    def final_config():
        stored = QuantizationConfig(method, int4.GROUP if method == "int4" else None, float(f"{error.relative:.4g}"))
        return replace(config, quantization=stored, dtype=str(dtype).removeprefix("torch."), missing={})

    return write_folder(out, final_config, tensors(), folder, find_speech(folder)), error.relative


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="a checkpoint folder of any kind that vita_ref reads")
    p.add_argument("out", help="the folder to write; it must not exist, or be empty")
    p.add_argument("--to", choices=["int8", "int4"], required=True)
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of what is not quantised (default: the checkpoint's)")
    p.add_argument("--vision-dir", help="folder of the vision tower's config, for VITA-1.5")
    p.add_argument("--audio-dir", help="folder of the audio encoder's config, for VITA-1.5")
    p.add_argument("--verbose", action="store_true", help="print progress even if standard error is no terminal")
    return p


def run(a):
    start = time.perf_counter()
    progress = None
    if a.verbose or sys.stderr.isatty():

        def progress(done, total):
            print(f"\r{done} of {total} tensors", end="\n" if done == total else "", file=sys.stderr, flush=True)

    nbytes, error = convert(a.model, a.out, a.to, a.dtype, a.vision_dir, a.audio_dir, progress)
    seconds = time.perf_counter() - start
    print(f"{a.out}: {nbytes / 1e9:.2f} GB of weights in {seconds:.0f} s, relative error of the quantised ones {error:.4f}")


def main(argv=None):
    """Entry point; returns the exit status."""
    return exit_status(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
