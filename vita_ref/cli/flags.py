"""The flags of ``python -m vita_ref.generate``, their defaults, and the checks that argparse does not make."""

import argparse
import os
from pathlib import Path

import torch

from ..sampling import Sampling


class Parser(argparse.ArgumentParser):
    """Prints errors as one line, without the usage."""

    def error(self, message):
        self.exit(2, f"vita_ref: {message} (--help lists the flags)\n")


def parser():
    """The flags of the command line, with their defaults."""
    p = Parser(prog="python -m vita_ref.generate", description="Answers a question about images, sounds or a video.")
    p.add_argument("question", nargs="?", metavar="QUESTION", help="the same as --prompt")
    p.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the demo weights)")
    p.add_argument("--vision-dir", metavar="DIR", help="folder of a VITA-1.5 checkpoint's vision config")
    p.add_argument("--audio-dir", metavar="DIR", help="folder of a VITA-1.5 checkpoint's train.yaml")
    p.add_argument("--speech-dir", metavar="DIR", help="folder of the speech weights, with decoder/ and codec/")
    p.add_argument("--prompt", metavar="TEXT", help="the question; may hold <image>, <audio> and <video>")
    p.add_argument("--image", metavar="PATH", action="append", default=[], help="an image, or - for standard input; repeatable")
    p.add_argument("--audio", metavar="PATH", action="append", default=[], help="a sound: wav, flac, ogg, mp3; repeatable")
    p.add_argument("--video", metavar="PATH", help="a video file, an animated image, or a folder of frames")
    p.add_argument("--fps", type=float, default=1.0, help="video frames sampled per second (default: 1)")
    p.add_argument("--max-frames", type=int, default=16, help="video frames at most (default: 16)")
    p.add_argument("--system", metavar="TEXT", help="system prompt (default: the checkpoint's own)")
    p.add_argument("--system-file", metavar="PATH", help="system prompt from a file")
    p.add_argument("--raw", action="store_true", help="use the prompt as it is, without the chat template")
    p.add_argument("--max-new-tokens", type=int, help="length of the answer at most (default: 256, or what fits)")
    p.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy (default: 0)")
    p.add_argument("--top-p", type=float, default=1.0, help="sample from the likeliest tokens with this share (default: 1)")
    p.add_argument("--top-k", type=int, default=0, help="sample from this many of the likeliest tokens; 0: all (default: 0)")
    p.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeated tokens are less likely (default: 1)")
    p.add_argument("--seed", type=int, help="seed of the sampling (default: a new one each time)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's")
    p.add_argument("--quantize", choices=["int8"], help="weight-only quantization")
    p.add_argument("--kernels", choices=["auto", "plain", "fast"], default="auto",
                   help="plain: torch's products; fast: those chosen for this processor class (default: auto)")  # fmt: skip
    p.add_argument("--pack", action="store_true", help="reorder the weights for the processor: for long prompts and --batch")
    p.add_argument("--no-mmap", action="store_true", help="copy the weights, so that their file may be overwritten")
    p.add_argument("--device", default="cpu", help="torch's name of the device (default: cpu)")
    p.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    p.add_argument("--max-tiles", type=int, help="tiles per image at most; 1 turns tiling off (default: the checkpoint's)")
    p.add_argument("--no-stream", action="store_true", help="print the answer once at the end")
    p.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    p.add_argument("--batch", metavar="FILE", help="JSON lines, one request each; the answers are JSON lines")
    p.add_argument("--top", type=int, default=0, metavar="N", help="with --json: the N likeliest first tokens")
    p.add_argument("--speak", metavar="OUT.wav", help="also write the answer as speech")
    p.add_argument("--speed", type=float, default=1.0, help="speed of the speech, 0.5 to 2 (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="print the memory and operations needed, without reading weights")
    p.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: for each of N processes (default: WORLD_SIZE)")
    p.add_argument("--verbose", action="store_true", help="print progress and timings even if standard error is no terminal")
    return p


LEAST = {"fps": 1e-3, "max_frames": 1, "max_new_tokens": 1, "threads": 1, "max_tiles": 1, "top": 0, "ranks": 1}


def check(a):
    """Refuses flags that are out of range or contradict each other, and makes ``prompt`` the question.

    Raises: ValueError that names the flag.
    """
    for name, least in LEAST.items():
        value = getattr(a, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    sampling_options(a).check()
    if not 0.5 <= a.speed <= 2:
        raise ValueError(f"--speed must be between 0.5 and 2, got {a.speed}")
    if a.question is not None and a.prompt is not None:
        raise ValueError("the question is given twice, as an argument and as --prompt: leave one out")
    a.prompt = a.question if a.prompt is None else a.prompt
    check_combinations(a)
    check_speech_file(a.speak)
    check_device(a.device)


def check_combinations(a):
    """Refuses flags that contradict each other."""
    media = a.prompt is not None or a.image or a.audio or a.video or a.speak
    wrong = {
        "--top needs --json": a.top and not (a.json or a.batch),
        "--pack and --quantize cannot be combined": a.pack and a.quantize,
        "--ranks needs --dry-run": a.ranks and not a.dry_run,
        "--system and --system-file are the same option: give one": a.system is not None and a.system_file is not None,
        "standard input holds one image: give --image - once": a.image.count("-") > 1,
        "--batch reads its requests from the file: leave out the prompt, --image, --audio, --video and --speak":
            a.batch and media,
        "several processes cannot share speech or standard input: leave out --speak and --image -":
            world_size() > 1 and (a.speak or "-" in a.image),
    }  # fmt: skip
    for message, applies in wrong.items():
        if applies:
            raise ValueError(message)


def check_speech_file(path):
    """Refuses a file that cannot be created."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"--speak {path}: its folder does not exist")
    if path and Path(path).is_dir():
        raise ValueError(f"--speak {path}: this is a folder, give a file name")


def check_device(name):
    """Refuses a device that torch cannot use here."""
    if name == "meta":
        raise ValueError("--device meta has no values: use --dry-run to see what a request needs")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


def sampling_options(a, generator=None):
    """The sampling flags as `Sampling`."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
    return Sampling(**{name: getattr(a, name) for name in names}, generator=generator)


def world_size():
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
