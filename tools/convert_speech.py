"""Converts upstream's speech weights to safetensors.

    python tools/convert_speech.py FOLDER [--out OTHER_FOLDER]

FOLDER holds decoder/ and codec/, each with model.json and final.pt. Each final.pt becomes a final.safetensors beside
it, or in the same place in OTHER_FOLDER. Tensor names and values stay as they are, weight norm included. The codec's
encoder is left out, because speaking does not need it. A pickle with anything but tensors and plain values is refused.

Test: ``pytest tests/test_speech.py``
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vita_ref.files.speech import read_tensors


def convert(folder, out):
    """Writes both files and returns the bytes of tensors in each, by sub-folder."""
    return {name: convert_part(Path(folder) / name, Path(out) / name) for name in ("decoder", "codec")}


def convert_part(source, target):
    """Writes ``target/final.safetensors``, and model.json if the folders differ. Returns the bytes of tensors."""
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in read_tensors(source).items()
        if not name.startswith("encoder.")
    }
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        shutil.copy(source / "model.json", target)
    save_file(tensors, target / "final.safetensors", metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())


def main(argv=None):
    description = __doc__.split("\n\n")
    parser = argparse.ArgumentParser(description=description[0], epilog=description[2])
    parser.add_argument("folder", metavar="FOLDER", help="the speech folder, with decoder/ and codec/")
    parser.add_argument("--out", metavar="OTHER_FOLDER", help="the folder to write (default: FOLDER)")
    arguments = parser.parse_args(argv)
    try:
        sizes = convert(arguments.folder, arguments.out or arguments.folder)
    except (ValueError, OSError) as error:
        print(f"convert_speech: {error}", file=sys.stderr)
        return 2
    for name, size in sizes.items():
        print(f"{name}/final.safetensors  {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
