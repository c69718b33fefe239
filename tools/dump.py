"""Every intermediate of one request as a safetensors file, and the first tensor in which two such files differ.

    python tools/dump.py OUT.safetensors --model DIR --image cat.jpg --prompt "What is this?"
    python tools/dump.py OUT.safetensors --model DIR --image cat.jpg --ids 3,-200,17,9
    python tools/dump.py --compare A.safetensors B.safetensors

vita_ref/analysis/trace.py lists the names and shapes. The flags of vita_ref.generate describe the request. Flags
that choose or print an answer are refused: the tokens here are the likeliest ones, up to the end of the answer, and
at most 8 unless --max-new-tokens is given. Unlike there, --kernels is plain by default: torch's own products. --ids gives
the prompt as token ids, for a folder without a tokenizer: the checkpoint's negative ids (-200 and -500 in VITA-1.5) stand for
the images and sounds, and no chat template is added. A video takes one such id for each of its frames, an image of several
tiles one (--max-tiles 1 makes it one tile).

A comparison exits with status 1 if the files differ. A tensor is off if any of its numbers differs by more than
the tolerance, times the largest number of the tensor in A if that is above 1. Ids and masks must be equal. The rows
are in the order of the flow, which the files store; tensors that are only in B come last. The last column is the index of
the number that differs most. A tensor without its batch axis of size 1 is compared all the same; --common compares the
tensors that both files have, and passes over the others: a port need not have them all on its first day.

Test: ``pytest tests/analysis/test_trace.py``
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
from vita_ref.checks.media import check_request
from vita_ref.cli import flags
from vita_ref.files.messages import shown
from vita_ref.loading import demo_folder
from vita_ref.request import (
    PreparedRequest,
    Request,
    check_length,
    default_prompt,
    load_audio,
    load_image,
    load_video,
    missing_reason,
)

ACCEPTED = {  # the flags that describe the request, or how it runs
    *("out", "compare", "tolerance", "deep", "maps", "all_logits", "max_new_tokens", "ids", "common"),
    *("model", "vision_dir", "audio_dir", "prompt", "image", "audio", "video", "fps", "max_frames", "max_tiles"),
    *("system", "system_file", "raw", "dtype", "quantize", "kernels", "no_mmap", "device", "threads", "verbose"),
}


def parser():
    """The flags of vita_ref.generate, and those of this program. The positional argument is the file to write."""
    p = flags.parser()
    p.prog, p.description, p.formatter_class = "dump.py", __doc__, argparse.RawDescriptionHelpFormatter
    positional = next(action for action in p._actions if action.dest == "question")
    positional.dest, positional.metavar, positional.help = "out", "OUT.safetensors", "the file to write"
    p.usage = "dump.py OUT.safetensors [flags]\n       dump.py --compare A B [--tolerance X] [--common]"
    p.epilog = "The other flags are those of python -m vita_ref.generate. Exit status: 0; 1 if files differ; 2 for errors that you can fix."
    p.add_argument("--ids", type=id_list, metavar="3,-200,7", help="the prompt as token ids; no tokenizer is needed")
    p.add_argument("--deep", action="store_true", help="also norms, q, k, v, attention and MLP of each layer")
    p.add_argument("--maps", action="store_true", help="also the attention maps of the decoder, on the eager path")
    p.add_argument("--all-logits", action="store_true", help="also the logits of every position")
    p.add_argument("--compare", nargs=2, metavar=("A", "B"), help="compare two files instead of writing one")
    p.add_argument("--common", action="store_true", help="compare the tensors that both files have")
    p.add_argument("--tolerance", type=float, default=1e-4, help="tolerance of a comparison (default: 1e-4)")
    p.set_defaults(question=None, max_new_tokens=8, kernels="plain")
    return p


def id_list(text):
    """The type of --ids."""
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers and commas, got {shown(text)}") from None


# ---- write


def record_request(vita, prepared, *, max_new_tokens=8, **options):
    """All tensors of one prepared request: name -> tensor, in the order of the flow. Options are those of `trace`."""
    with torch.inference_mode(), trace(vita, **options) as record:
        record["token_ids"] = prepared.ids[None]  # [B, n]
        record["tokens"] = likeliest_tokens(vita, prepared, max_new_tokens)  # [B, new]
    return record


def likeliest_tokens(vita, prepared, max_new_tokens):
    """Greedy generation. Shapes: -> [1, W] long."""
    audios = {"audios": prepared.sounds} if prepared.sounds else None
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": vita.stop_ids}
    return vita.generate(prepared.ids[None], images=prepared.images or None, audios=audios, **options).cpu()


def save(path, record, *, model, prompt, dtype):
    """Writes a file whose header names the model, the prompt, and the order of the tensors."""
    about = {"model": model, "prompt": prompt, "dtype": dtype, "torch": torch.__version__, "order": " ".join(record)}
    try:
        save_file(record, path, metadata=about)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot write {path}: {error}") from None


def load_with_ids(a):
    """Like `generate.load`, for a prompt in token ids. Raises: ValueError for ids that do not match the media."""
    if a.prompt is not None or a.system is not None or a.system_file is not None or a.raw:
        raise ValueError("--ids is the whole prompt: leave out --prompt, --system, --system-file and --raw")
    a.prompt = ""
    flags.check(a)
    if a.threads:
        torch.set_num_threads(a.threads)
    vita = Vita.from_pretrained(a.model, **flags.loading_options(a))
    request = check_request(Request(None, a.image, a.audio, a.video, max_tiles=a.max_tiles, fps=a.fps, max_frames=a.max_frames))
    for given, part in ((request.images or request.video, "vision"), (request.audios, "audio")):
        if given and getattr(vita.config, part) is None:
            raise ValueError(f"this checkpoint has no {part} part: {missing_reason(vita.config, part)}")
    images = [load_image(source, request, vita.config) for source in request.images]
    images += load_video(request, vita.config) if request.video else []
    prepared = PreparedRequest(torch.tensor(a.ids), images, [load_audio(source, vita.config) for source in request.audios])
    if not a.ids:
        raise ValueError("--ids is empty")
    check_length(vita.config, prepared, a.max_new_tokens)
    return vita, [prepared]


def dump(a):
    """Loads the model, runs the request and writes the file. Raises: ValueError for user errors."""
    vita, prepared = load_with_ids(a) if a.ids is not None else generate.load(a)[:2]
    [prepared] = prepared
    options = {"deep": a.deep, "maps": a.maps, "all_logits": a.all_logits}
    record = record_request(vita, prepared, max_new_tokens=a.max_new_tokens, **options)
    dtype = str(vita.decoder.norm.weight.dtype).removeprefix("torch.")
    dtype = f"{dtype}, {a.quantize} weights" if a.quantize else dtype
    model = Path(a.model or demo_folder()).resolve().name
    prompt = "" if a.ids is not None else default_prompt(Request(a.prompt, a.image, a.audio, a.video))
    save(a.out, record, model=model, prompt=prompt, dtype=dtype)
    print(f"{a.out}: {len(record)} tensors, {sum(t.nbytes for t in record.values()) / 1e6:.1f} MB")


# ---- compare


def open_file(path):
    """A safetensors file, whose tensors are read one at a time."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def flow_order(a, b):
    """The names of two files in the order that the first of them stores, or else the second. Other names come last."""
    order = next((about["order"].split() for about in (a.metadata(), b.metadata()) if about and "order" in about), [])
    place = {name: i for i, name in enumerate(order)}
    return sorted({*a.keys(), *b.keys()}, key=lambda name: (place.get(name, len(place)), name))


def same_axes(a, b):
    """Two tensors without the leading axes of size 1 that only one of them has. Example: [1, 7, 5] and [7, 5]."""
    more, fewer = (a, b) if a.dim() > b.dim() else (b, a)
    while more.dim() > fewer.dim() and more.shape[0] == 1:
        more = more[0]
    return (more, fewer) if a.dim() > b.dim() else (fewer, more)


def difference(a, b, tolerance):
    """The largest difference, the same relative to the largest number of ``a``, whether it is too large, and its index."""
    if a.shape != b.shape:
        return torch.inf, torch.inf, True, None
    if not a.numel():
        return 0.0, 0.0, False, None
    exact = not (a.is_floating_point() and b.is_floating_point())
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64 if exact else torch.float32)
    a, b = a.to(wide), b.to(wide)
    apart = (a - b).abs().nan_to_num(torch.inf, torch.inf)
    most, largest = float(apart.max()), float(a.abs().max())
    limit = 0.0 if exact else tolerance * max(1.0, largest)
    worst = [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)] if most else None
    return most, most / largest if largest else most, most > limit or most == torch.inf, worst


def compare(path_a, path_b, tolerance, common=False):
    """Prints one row for each tensor and a verdict. Returns the exit status."""
    a, b = open_file(path_a), open_file(path_b)
    names, in_a, in_b = flow_order(a, b), {*a.keys()}, {*b.keys()}
    if common:
        names = [name for name in names if name in in_a & in_b]
    if not names:
        raise ValueError(f"{path_a} and {path_b} have no tensor in common" if common else f"{path_a} and {path_b} are empty")
    width, off = max(map(len, names)), []
    print(f"{'name':{width}}  {'shape':>20}  {'difference':>10}  {'relative':>10}  worst at")
    for name in names:
        if name not in in_a or name not in in_b:
            print(f"{name:{width}}  {'surplus: only in B' if name not in in_a else 'missing: only in A':>20}")
            continue
        x, y = a.get_tensor(name), b.get_tensor(name)
        shape = str(list(x.shape)) if x.shape == y.shape else f"{list(x.shape)}, in B {list(y.shape)}"
        most, relative, bad, worst = difference(*same_axes(x, y), tolerance)
        place = "" if worst is None else f"  {worst}"
        print(f"{name:{width}}  {shape:>20}  {most:10.2e}  {relative:10.2e}{place}{'  OFF' if bad else ''}")
        off += [name] * bad
    both, missing, surplus = len(in_a & in_b), len(in_a - in_b), len(in_b - in_a)
    verdict = f"first off: {off[0]}; {len(off)} of {both} off" if off else f"{both} agree"
    print(f"{verdict}, {missing} missing, {surplus} surplus" + ", which --common passes over" * (common and bool(missing + surplus)))
    return int(bool(off) or not common and in_a != in_b)


def main(argv=None):
    """Entry point. Returns the exit status."""
    p = parser()
    a = p.parse_args(argv)
    try:
        if a.common and not a.compare:
            raise ValueError("--common belongs to --compare")
        if (a.out is None) == (a.compare is None):
            raise ValueError("give either a file to write or --compare A B")
        if a.compare:
            return compare(*a.compare, a.tolerance, a.common)
        for name, value in vars(a).items():
            if name not in ACCEPTED and value != p.get_default(name):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} does not apply: dump.py records one request with the likeliest tokens")
        dump(a)
    except ValueError as error:
        print(f"dump.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
