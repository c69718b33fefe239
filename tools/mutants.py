"""Plants one-line bugs, one at a time, in a copy of the project and shows which test catches each.

    python tools/mutants.py [-k PART_OF_A_NAME]

A line a bug: its name, the first test that fails, the seconds that took. Exit status 1 where a bug
survives; it stops at once where the unchanged copy does not pass, or a bug's text is no longer there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("vita_ref", "tests", "tools", "weights", "setup.cfg", "pyproject.toml")
LIMIT = 900  # seconds for one run of tests; longer is an error, not a catch: the machine may just be busy
AS_FOUND = """
from hypothesis import Phase, settings

settings.register_profile("as found", phases=(Phase.explicit, Phase.generate))
settings.load_profile("as found")
"""  # for the copy's conftest.py: a failing example is not made smaller, which can take minutes


class Mutant(NamedTuple):
    """A bug: in ``file`` of vita_ref, ``old`` (there exactly once) becomes ``new``; ``tests`` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


GOLDEN = "golden_splice"
MUTANTS = [
    Mutant("q bias dropped", "decoder.py", "q = self.q_proj(x)", "q = F.linear(x, self.q_proj.weight)", GOLDEN),
    Mutant("k bias dropped", "decoder.py", "k = self.k_proj(x)", "k = F.linear(x, self.k_proj.weight)", GOLDEN),
    Mutant("rope halves interleaved", "decoder.py",
           "x.float().chunk(2, -1)",
           "x.float().unflatten(-1, (-1, 2)).unbind(-1)", GOLDEN),
    Mutant("norm eps ten times too large", "decoder.py", "+ self.eps)", "+ 10 * self.eps)", GOLDEN),
    Mutant("causal mask lost on a second chunk", "decoder.py",
           "return (columns <= queries)[None, None]",
           "return None", "batches"),
    Mutant("padding attended", "decoder.py",
           "(columns <= queries) & self.real[:, None, : len(columns)] |",
           "(columns <= queries).expand(len(self.real), -1, -1) |", "batches"),
    Mutant("heads share the wrong keys in decoding", "decoder.py",
           "q = q.reshape(b, groups, heads // groups, q.shape[3])",
           "q = q.reshape(b, heads // groups, groups, q.shape[3]).transpose(1, 2)", "batches"),
    Mutant("labels shifted", "decoder.py", "targets = labels[:, 1:]", "targets = labels[:, :-1]", "model"),
    Mutant("state labels counted in the loss", "decoder.py", "(targets < 0, -100)", "(targets < -100, 0)", "model"),
    Mutant("position off by one after the prompt", "cache.py", "used + 1, 0)", "used, 0)", "batches"),
    Mutant("positions go on behind the padding", "cache.py", "used + 1, 0)", "self.length, 0)", "batches"),
    Mutant("truncate leaves the position", "cache.py", "        self.length = length\n", "", "batches"),
    Mutant("media order swapped", "splice.py", "kind: iter(features) for", "kind: iter(features[::-1]) for", "splice"),
    Mutant("truncation keeps the end", "splice.py", "(e[:max_length],", "(e[-(max_length or 0) :],", "splice"),
    Mutant("stride restarts where images touch", "splice.py",
           "if merged and merged[-1][1] == start:",
           "if False:", "splice"),
    Mutant("position off by one after the splice", "splice.py",
           "return steps.cumsum(0) - 1",
           "return steps.cumsum(0) - 1 + (torch.arange(length) >= (merged[-1][1] if merged else length))", "splice"),
    Mutant("state label on a sound's first position", "splice.py", "label[-1] = state", "label[0] = state", "splice"),
    Mutant("labels kept under images", "splice.py",
           "target.new_full(part.shape[:1], IGNORE)",
           "target[start].repeat(len(part))", "splice"),
    Mutant("left padding put on the right", "splice.py", 'if side == "left" else 0', "if not side else 0", "splice"),
    Mutant("height and width swapped in the shuffle", "vision.py",
           "return x.transpose(2, 3).flatten(3)",
           "return x.permute(0, 1, 3, 4, 2, 5).flatten(3)", GOLDEN),
    Mutant("feature_scale dropped", "vision.py", "x = x * c.feature_scale", "x = x * 1", GOLDEN),
    Mutant("the last patch dropped for the class token", "vision.py", "x = x[:, 1:]", "x = x[:, :-1]", GOLDEN),
    Mutant("sounds keep their padding", "model.py",
           "(e[: audio_token_count(len(bank)) + prompts] for",
           "(e for", "batches"),
    Mutant("the answer read from the last column", "model.py",
           "hidden = hidden[torch.arange(b, device=hidden.device), last]",
           "hidden = hidden[:, -1]", "batches"),
    Mutant("ended rows write on", "model.py", "chosen.masked_fill(ended, pad_token_id)", "chosen", "batches"),
    Mutant("queries of a later block counted from the first", "decoder.py",
           "columns[self.past + start :, None]",
           "columns[self.past : self.past + stop - start, None]", "decoder"),
    Mutant("a block of queries takes the last values", "decoder.py", "v[:, :, :end]", "v[:, :, -end:]", "decoder"),
    Mutant("halves of a product in the wrong order", "linear.py",
           "return pair.flatten(0, 1)",
           "return pair.flip(0).flatten(0, 1)", "linear"),
    Mutant("folded inputs interleaved", "linear.py", "torch.kron(steps, rows)", "torch.kron(rows, steps)", "linear"),
    Mutant("bias dropped for a few rows", "linear.py", "out = out + bias", "out = out", "linear"),
    Mutant("the slowest way kept", "linear.py", "min(medians,", "max(medians,", "linear"),
    Mutant("packed bias dropped", "linear.py", "linear_pointwise(full, weight, bias,", "linear_pointwise(full, weight, None,",
           "linear"),
    Mutant("packed rows behind their padding", "linear.py", "(0, 0, 0, max(0, 4 - len(rows)))", "(0, 0, max(0, 4 - len(rows)), 0)",
           "linear"),
    Mutant("rows rounded by the first block's scale", "quant.py", "some / steps", "some / scale[: len(some)]", "quant"),
    Mutant("a tensor skipped where the map changes", "checkpoint.py",
           "copied += 0 if stays_mapped(stored) else stored.nbytes",
           "copied, names = copied + stored.nbytes, names[copied + stored.nbytes >= _MAPPED :]", "checkpoint"),
    Mutant("weights left in the file unasked", "checkpoint.py", "return mmap and", "return", "checkpoint"),
    Mutant("attention not summed over the ranks", "parallel.py",
           'kind in ("o_proj", "down_proj")',
           'kind == "down_proj"', "parallel"),
    Mutant("every rank's cache has all heads", "parallel.py", "groups // ranks}", "groups}", "parallel"),
    Mutant("keys counted without values", "budget.py",
           "return 2 * decoder.num_hidden_layers * rows",
           "return decoder.num_hidden_layers * rows", "budget"),
    Mutant("a rank's share rounded down", "budget.py",
           "-(-getattr(d, name) // ranks)",
           "getattr(d, name) // ranks", "budget"),
]  # fmt: skip


def planted(mutant, folder):
    """The file with the bug in it. Raises: ValueError where its text is not there exactly once."""
    text = (folder / "vita_ref" / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {mutant.old!r} {count} times, expected once")
    return text.replace(mutant.old, mutant.new)


def failing(tests, folder):
    """The first of the tests that fails in the copy, None where all pass."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": LIMIT}
    done = subprocess.run(command, check=False, **options)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return found[0].split(" - ")[0].split(maxsplit=1)[1] if done.returncode else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-k", default="", metavar="PART_OF_A_NAME", help="only the bugs with this in their names")
    part = p.parse_args().k
    chosen = [m for m in MUTANTS if part in m.name]
    if not chosen:
        p.error("no bug has that in its name")
    survived, wide = [], max(len(m.name) for m in chosen)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in COPIED:
            source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name, **({"ignore": ignored} if source.is_dir() else {}))
        with open(folder / "tests" / "conftest.py", "a", encoding="utf-8") as conftest:
            conftest.write(AS_FOUND)
        bugs = [planted(m, folder) for m in chosen]  # all of them before any test runs
        suite = sorted({f"tests/test_{m.tests}.py" for m in chosen})
        if (broken := failing(suite, folder)) is not None:
            raise RuntimeError(f"without any bug, {broken} fails")
        print(f"{len(chosen)} bugs; without any, {', '.join(suite)} pass", flush=True)
        for mutant, text in zip(chosen, bugs):
            file, start = folder / "vita_ref" / mutant.file, time.time()
            good = file.read_text(encoding="utf-8")
            file.write_text(text, encoding="utf-8")
            caught = failing([f"tests/test_{mutant.tests}.py"], folder)
            file.write_text(good, encoding="utf-8")
            survived += [mutant.name] if caught is None else []
            print(f"{mutant.name:{wide}}  {caught or 'SURVIVED'}  {time.time() - start:.0f} s", flush=True)
    print(f"{len(chosen) - len(survived)} caught, {len(survived)} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
