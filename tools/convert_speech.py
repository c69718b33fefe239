"""Upstream's speech folder as safetensors: each ``final.pt`` of ``decoder/`` and ``codec/`` as ``final.safetensors``.

    python tools/convert_speech.py FOLDER [--out OTHER_FOLDER]

Names and values stay as they are, weight norm too; the codec's encoder, which speaking does not need, is left out.
A pickle that holds more than tensors is refused, never run.
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vita_ref.speech import read_tensors


def convert(folder, out):
    """Writes both files; gives how many bytes of tensors each holds."""
    sizes = {}
    for part in ("decoder", "codec"):
        source, target = Path(folder) / part, Path(out) / part
        tensors = {
            n: t.clone(memory_format=torch.contiguous_format)
            for n, t in read_tensors(source).items()
            if not n.startswith("encoder.")
        }
        target.mkdir(parents=True, exist_ok=True)
        if source.resolve() != target.resolve():
            shutil.copy(source / "model.json", target)
        save_file(tensors, target / "final.safetensors", metadata={"format": "pt"})
        sizes[part] = sum(t.nbytes for t in tensors.values())
    return sizes


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="holds decoder/ and codec/")
    parser.add_argument("--out", help="where to write (default: the same folder)")
    arguments = parser.parse_args(argv)
    try:
        sizes = convert(arguments.folder, arguments.out or arguments.folder)
    except (ValueError, OSError) as error:
        print(f"convert_speech: {error}", file=sys.stderr)
        return 2
    for part, size in sizes.items():
        print(f"{part}/final.safetensors  {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
