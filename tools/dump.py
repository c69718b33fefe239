"""Every intermediate of one request as a safetensors file, and which of two such files' numbers part first.

    python tools/dump.py OUT.safetensors --model DIR --image cat.jpg --prompt "What is this?"
    python tools/dump.py --compare A.safetensors B.safetensors

The names and shapes stand in vita_ref/trace.py. A request is described by the flags of vita_ref.generate;
those that choose or show an answer are refused, for the tokens here are the likeliest ones, up to the end of
the answer and 8 at most unless --max-new-tokens says otherwise.

A comparison ends with status 1 where the files differ. A tensor is off where its numbers differ by more than
the tolerance, times its largest number in A where that is above one; ids and masks where they differ at all.
The rows stand in the order of the flow, which the files tell; what only B has comes last.

Test: ``pytest tests/test_trace.py``
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vita_ref import Vita, generate
from vita_ref.analysis.trace import trace
from vita_ref.request import batch, prepare, wording

USED = {  # the flags that make a request or run it
    *("out", "compare", "tolerance", "deep", "all_logits", "max_new_tokens"),
    *("model", "vision_dir", "audio_dir", "prompt", "image", "audio", "video", "fps", "max_frames", "max_tiles"),
    *("system", "system_file", "raw", "dtype", "quantize", "no_mmap", "device", "threads", "verbose"),
}


def parser():
    """The flags of the command line, and a few of its own."""
    p = generate.parser()
    p.prog, p.description, p.formatter_class = "dump.py", __doc__, argparse.RawDescriptionHelpFormatter
    p.add_argument("out", nargs="?", metavar="OUT.safetensors", help="the file to write")
    p.add_argument("--deep", action="store_true", help="also q, k, v, attention and MLP of each decoder layer")
    p.add_argument("--all-logits", action="store_true", help="logits of every position instead of the last one's")
    p.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two files instead of writing one")
    p.add_argument("--tolerance", type=float, default=1e-4, help="of a comparison, see above (default: 1e-4)")
    p.set_defaults(max_new_tokens=8)
    return p


def record(vita, ready, *, deep=False, all_logits=False, max_new_tokens=8):
    """Everything about one prepared request: name -> tensor, in the order of the flow."""
    with torch.inference_mode(), trace(vita, deep=deep, all_logits=all_logits) as found:
        found["token_ids"] = ready.ids[None]  # [B, I]
        x = vita.inputs(**batch([ready]))
        steps = vita.steps(x, max_new_tokens=max_new_tokens, eos_token_ids=vita.stop_ids)
        found["tokens"] = torch.stack([ids for ids, _ in steps], 1).cpu()  # [B, G]
    return found


def save(path, found, *, model, prompt, dtype):
    """Writes a file whose header says which model was asked what, and in which order the names come."""
    about = {"model": model, "prompt": prompt, "dtype": dtype, "torch": torch.__version__, "order": " ".join(found)}
    try:
        save_file(found, path, metadata=about)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot write {path}: {error}") from None


def dump(a):
    """Loads, asks and writes. Raises: ValueError for what the user can mend."""
    generate.check(a)
    if a.threads:
        torch.set_num_threads(a.threads)
    [request], folder = generate.requests(a), a.model or generate.demo_folder()
    vita = Vita.from_pretrained(
        folder,
        dtype=None if a.dtype is None else getattr(torch, a.dtype),
        device=a.device,
        quantize=a.quantize,
        vision_dir=a.vision_dir,
        audio_dir=a.audio_dir,
        mmap=not a.no_mmap,
    )
    ready = prepare(request, vita.config, vita.tokenizer)
    found = record(vita, ready, deep=a.deep, all_logits=a.all_logits, max_new_tokens=a.max_new_tokens)
    dtype = str(vita.decoder.norm.weight.dtype).removeprefix("torch.")
    dtype = f"{dtype}, {a.quantize} weights" if a.quantize else dtype
    save(a.out, found, model=Path(folder).resolve().name, prompt=wording(request), dtype=dtype)
    print(f"{a.out}: {len(found)} tensors, {sum(t.nbytes for t in found.values()) / 1e6:.1f} MB")


def opened(path):
    """A safetensors file, to be read tensor by tensor."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None


def flow(a, b):
    """The names of two opened files in the order that one of them tells (the first that does), others last."""
    told = next((about["order"].split() for about in (a.metadata(), b.metadata()) if about and "order" in about), [])
    place = {name: i for i, name in enumerate(told)}
    return sorted({*a.keys(), *b.keys()}, key=lambda name: (place.get(name, len(place)), name))


def apart(a, b, tolerance):
    """The largest difference, the same relative to the largest number of ``a``, and whether that is too much."""
    if a.shape != b.shape:
        return torch.inf, torch.inf, True
    if not a.numel():
        return 0.0, 0.0, False
    exact = not (a.is_floating_point() and b.is_floating_point())
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64 if exact else torch.float32)
    a, b = a.to(wide), b.to(wide)
    most, largest = float((a - b).abs().nan_to_num(torch.inf, torch.inf).max()), float(a.abs().max())
    limit = 0.0 if exact else tolerance * max(1.0, largest)
    return most, most / largest if largest else most, most > limit or most == torch.inf


def compare(path_a, path_b, tolerance):
    """Prints a row a tensor and what comes of it; gives the exit status."""
    a, b = opened(path_a), opened(path_b)
    names, ours, theirs = flow(a, b), {*a.keys()}, {*b.keys()}
    width, off = max(map(len, names), default=4), []
    print(f"{'name':{width}}  {'shape':>20}  {'difference':>10}  {'relative':>10}")
    for name in names:
        if name not in ours or name not in theirs:
            print(f"{name:{width}}  {'surplus: only in B' if name not in ours else 'missing: only in A':>20}")
            continue
        x, y = a.get_tensor(name), b.get_tensor(name)
        most, relative, bad = apart(x, y, tolerance)
        shape = str(list(x.shape)) if x.shape == y.shape else f"{list(x.shape)}, in B {list(y.shape)}"
        print(f"{name:{width}}  {shape:>20}  {most:10.2e}  {relative:10.2e}{'  OFF' if bad else ''}")
        off += [name] * bad
    both, lacking, more = len(ours & theirs), len(ours - theirs), len(theirs - ours)
    verdict = f"first off: {off[0]}; {len(off)} of {both} off" if off else f"{both} agree"
    print(f"{verdict}, {lacking} missing, {more} surplus")
    return int(bool(off) or ours != theirs)


def main(argv=None):
    """Entry point; gives the exit status."""
    p = parser()
    a = p.parse_args(argv)
    try:
        if (a.out is None) == (a.compare is None):
            raise ValueError("give either a file to write or --compare A B")
        if a.compare:
            return compare(*a.compare, a.tolerance)
        for name, value in vars(a).items():
            if name not in USED and value != p.get_default(name):
                raise ValueError(f"dump.py does not take --{name.replace('_', '-')}: one request, the likeliest tokens")
        dump(a)
    except ValueError as error:
        print(f"dump.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
