"""The flags of ``python -m vita_ref.generate``, their defaults, and the checks that argparse does not make."""

import argparse
import os
import re
import sys

import torch

from ..checks.devices import as_device
from ..files.messages import shown
from ..files.output import check_output
from ..loading import DTYPES
from ..sampling import Sampling
from .help import Formatter, grouped_help
from .terminal import one_line

EPILOG = """examples:
  %(prog)s --image cat.jpg                                  describes the image
  %(prog)s "What is she asking?" --audio question.wav --json
  %(prog)s --model VITA-1.5 --batch requests.jsonl --max-new-tokens 64

--image and --audio may be given several times. Of another flag that is given twice, the last one counts, or it is refused.

exit status: 0; 2 for errors that you can fix, with one line on standard error; 130 after Ctrl-C, 143 after SIGTERM.

limits: --batch 64 MB; --system-file 1 MB; an image from standard input 256 MB; --max-new-tokens 1,000,000; --max-tiles 1,000;
--threads four for each processor, or 64.

--batch: each line is an object with prompt, images, audios, video and id, all optional; the answer repeats the id. A line with an
error becomes {"id": ..., "error": "..."} in its place, the others are answered, and the exit status is 2.

--audio and a question: the sound is the question. The demo and VITA-1.5 were trained with a spoken or a written question, not
with both. With both, the sound comes first in the prompt and the text follows; the answer may be about either.
"""


class Parser(argparse.ArgumentParser):
    """Prints errors as one line, without the usage, and the help in groups."""

    def format_help(self):
        return grouped_help(self)

    def error(self, message):
        if message.startswith("unrecognized arguments: ") and not message.split(": ")[1].startswith("-"):
            message += ': put a question of several words in quotes, "What is this?"'
        self.exit(2, f"vita_ref: {one_line(message, 240)} (--help lists the flags)\n")


class Once(argparse.Action):
    """Stores a value, and refuses a second one, which would silently replace the first."""

    def __call__(self, parser, namespace, value, option_string=None):
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: leave one out")
        setattr(namespace, self.dest, value)


def path(text):
    """The type of a flag that names a file or a folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("a name must not be empty or contain a zero byte")
    return text


def dtype(text):
    """The type of --dtype: a name in full or in short becomes that of a dtype that weights can have."""
    found = DTYPES.get(text.removeprefix("torch.").lower())
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        names = "float32 (fp32, float), bfloat16 (bf16) or float16 (fp16, half)"
        raise argparse.ArgumentTypeError(f"expected {names}, got {shown(text)}")
    return str(found).removeprefix("torch.")


def parser():
    """The flags of the command line, with their defaults."""
    script = os.path.basename(sys.argv[0]) in ("vita-ref", "vita-ref.exe")
    p = Parser(prog="vita-ref" if script else "python -m vita_ref.generate", description="Answers a question about images, sounds or a video.",
               epilog=EPILOG, formatter_class=Formatter)  # fmt: skip
    p.add_argument("question", nargs="?", metavar="QUESTION", help="the same as --prompt")
    p.add_argument("--prompt", metavar="TEXT", action=Once, help="the question; may hold <image>, <audio> and <video>")
    add_common_flags(p)
    p.add_argument("--no-stream", action="store_true", help="print the answer once at the end")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    p.add_argument("--batch", metavar="FILE", type=path, action=Once,
                   help="JSON lines, one request each; the answers are JSON lines")  # fmt: skip
    p.add_argument("--batch-stop", action="store_true", help="end at the first line of --batch that has an error")
    p.add_argument("--top", type=int, default=0, metavar="N", help="with --json: the N likeliest first tokens")
    p.add_argument("--speak", metavar="OUT.wav", type=path, action=Once, help="also write the answer as speech")
    p.add_argument("--speed", type=float, default=1.0, help="speed of the speech, 0.5 to 2 (default: 1)")
    p.add_argument("--page", metavar="OUT.html", type=path, action=Once, help="also write a page that explains the answer; uses plain products")
    p.add_argument("--explain", action="store_true", help="print a table of the prompt's positions, and the answer's tokens")
    p.add_argument("--page-tokens", type=int, metavar="N", help="with --page: so many tokens are explained (default: up to 32)")
    p.add_argument("--page-passes", type=int, metavar="N", help="with --page: so many passes that cover a place; 0: none (default: 24 to 400)")
    p.add_argument("--dry-run", action="store_true", help="print the memory and operations needed, without reading weights")
    p.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: for each of N processes (default: WORLD_SIZE)")
    return p


def add_model_flags(p):
    """The flags for the model and the processor."""
    folder = {"metavar": "DIR", "type": path}
    p.add_argument("--model", **folder, help="checkpoint folder (default: the demo weights)")
    p.add_argument("--vision-dir", **folder, help="folder of a VITA-1.5 checkpoint's vision config")
    p.add_argument("--audio-dir", **folder, help="folder of a VITA-1.5 checkpoint's train.yaml")
    p.add_argument("--speech-dir", **folder, help="folder of the speech weights, with decoder/ and codec/")
    p.add_argument("--dtype", type=dtype, metavar="NAME", help="float32, bfloat16 or float16 (default: the checkpoint's)")
    p.add_argument("--quantize", choices=["int8", "int4"], help="weight-only quantization of the decoder's matrices")
    p.add_argument("--kernels", choices=["auto", "plain", "fast"], default="auto",
                   help="plain: torch's products; fast: those chosen for this processor class (default: auto)")  # fmt: skip
    p.add_argument("--pack", action="store_true", help="reorder the weights for the processor: for long prompts and --batch")
    p.add_argument("--no-mmap", action="store_true", help="copy the weights, so that their file may be overwritten")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps or xpu (default: cpu)")
    p.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    p.add_argument("--verbose", action="store_true", help="print progress and timings even if standard error is no terminal")


def add_common_flags(p):
    """The flags for the model, the media and the sampling, which a conversation has too."""
    file, once = {"metavar": "PATH", "type": path}, {"metavar": "TEXT", "action": Once}
    repeatable = {"action": "append", "default": []}
    add_model_flags(p)
    p.add_argument("--image", **file, **repeatable, help="an image, or - for standard input; repeatable")
    p.add_argument("--audio", **file, **repeatable, help="a sound: wav, flac, ogg, mp3; repeatable; see below")
    p.add_argument("--video", **file, action=Once, help="a video file, an animated image, or a folder of frames")
    p.add_argument("--fps", type=float, default=1.0, help="video frames sampled per second (default: 1)")
    p.add_argument("--max-frames", type=int, default=16, help="maximum number of video frames (default: 16)")
    p.add_argument("--system", **once, help="system prompt (default: the checkpoint's own)")
    p.add_argument("--system-file", **file, action=Once, help="system prompt from a file")
    p.add_argument("--raw", action="store_true", help="use the prompt as it is, without the chat template")
    p.add_argument("--max-new-tokens", type=int, help="maximum number of new tokens (default: 256, or what fits)")
    p.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy (default: 0)")
    p.add_argument("--top-p", type=float, default=1.0, help="sample from the smallest set of most likely tokens with this total probability (default: 1)")
    p.add_argument("--top-k", type=int, default=0, help="sample from this many of the likeliest tokens; 0: all (default: 0)")
    p.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeated tokens are less likely (default: 1)")
    p.add_argument("--seed", type=int, help="seed of the sampling (default: a new one each time)")
    p.add_argument("--max-tiles", type=int, help="tiles per image at most; 1 turns tiling off (default: the checkpoint's)")


INT32 = 2**31 - 1
RANGES = {
    "fps": (1e-3, 1e3),
    "max_frames": (1, INT32),
    "max_new_tokens": (1, 10**6),
    "threads": (1, max(64, 4 * (os.cpu_count() or 1))),  # torch starts them all, and a system refuses too many
    "max_tiles": (1, 1000),
    "top": (0, INT32),
    "top_k": (0, INT32),
    "ranks": (1, INT32),
    "page_tokens": (1, INT32),
    "page_passes": (0, INT32),
    "speed": (0.5, 2),
    "seed": (-(2**63), 2**64 - 1),  # as in torch
}


def check(a):
    """Refuses flags that are out of range or contradict each other, and makes ``prompt`` the question.

    Raises: ValueError that names the flag.
    """
    check_ranges(a)
    if a.question is not None and a.prompt is not None:
        raise ValueError("the question is given twice, as an argument and as --prompt: leave one out")
    a.prompt = a.question if a.prompt is None else a.prompt
    check_combinations(a)
    for flag in ("speak", "page"):
        if file := getattr(a, flag):
            check_output(file, f"--{flag}")
    check_device(a.device)


def check_ranges(a):
    """Refuses numbers that are out of range."""
    for name, (least, most) in RANGES.items():
        value = getattr(a, name, None)
        if value is not None and not least <= value <= most:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be at least {least} and at most {most}, got {shown(value)}")
    if hasattr(a, "temperature"):
        sampling_options(a).check()


def check_combinations(a):
    """Refuses flags that contradict each other."""
    media = a.prompt is not None or a.image or a.audio or a.video or a.speak
    wrong = {
        "--top needs --json": a.top and not (a.json or a.batch),
        "--pack and --quantize cannot be combined": a.pack and a.quantize,
        "--ranks needs --dry-run": a.ranks and not a.dry_run,
        "--page and --explain are about one answer: leave out --batch, --json, --dry-run and --speak":
            (a.page or a.explain) and (a.batch or a.json or a.dry_run or a.speak),
        "--page and --explain use plain products: leave out --pack and --kernels fast":
            (a.page or a.explain) and (a.pack or a.kernels == "fast"),
        "--page writes a page: give it a name that ends in .html":
            a.page and not a.page.lower().endswith((".html", ".htm")),
        "--page-tokens and --page-passes need --page": (a.page_tokens or a.page_passes is not None) and not a.page,
        "--batch-stop needs --batch": a.batch_stop and not a.batch,
        "--system and --system-file are the same option: give one": a.system is not None and a.system_file is not None,
        "standard input holds one image: give --image - once": a.image.count("-") > 1,
        "--batch reads its requests from the file: leave out the prompt, --image, --audio, --video and --speak":
            a.batch and media,
        "several processes cannot share speech, pages or standard input: leave out --speak, --page, --explain and --image -":
            world_size() > 1 and (a.speak or a.page or a.explain or "-" in a.image),
    }  # fmt: skip
    for message, applies in wrong.items():
        if applies:
            raise ValueError(message)


def check_device(name):
    """Refuses a device that torch cannot use here."""
    if name.partition(":")[0] == "meta":
        raise ValueError("--device meta has no values: use --dry-run to see what a request needs")
    if re.fullmatch(r"cpu:.*", name):
        raise ValueError(f"--device must be cpu without a number, got {shown(name)}")
    as_device(name)


def sampling_options(a):
    """The sampling flags as `Sampling`."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")
    errors = "return" if getattr(a, "batch", None) else "raise"
    return Sampling(**{name: getattr(a, name) for name in names}, errors=errors)


def loading_options(a, progress=None):
    """The flags for the model as options of `Vita.from_pretrained`."""
    names = ("device", "quantize", "kernels", "vision_dir", "audio_dir", "speech_dir", "pack")
    options = {name: getattr(a, name) for name in names}
    options |= {"dtype": a.dtype and getattr(torch, a.dtype), "mmap": not a.no_mmap, "split": world_size() > 1}
    return options | {"progress": progress}


def world_size():
    """How many processes torchrun has started; 1 without it. Raises: ValueError for an environment it has not made."""
    size, rank = (os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if not re.fullmatch(r"0*[1-9]\d{0,5}", size):
        raise ValueError(f"the environment variable WORLD_SIZE must be a number of processes, got {shown(size)}: unset it")
    if int(size) > 1 and not (re.fullmatch(r"\d{1,6}", rank) and int(rank) < int(size)):
        raise ValueError(f"the environment variable RANK must be below WORLD_SIZE, {size}, got {shown(rank)}: unset both")
    return int(size)
