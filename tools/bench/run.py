"""How fast and how big vita_ref is: our figures beside those of transformers and the limits of the machine.

    python -m tools.bench [--only decode load ...] [--pairs 5] [--threads 2] [--work FOLDER] [--json FILE]
    python -m tools.bench --products [--threads 1]     (see products.py)

Fairness: each side is a process of its own (`process.py`), so neither has the other's libraries, threads or memory. All
sides have loaded before the first turn, and they take turns: limit, ours, theirs, limit, ours, theirs. A ratio is taken
within a turn; the table has the median [least..largest] of the turns. The first turn warms up and does not count.
Loading and memory are measured in new processes, without what the imports need. Modules that transformers imports within
its first ``from_pretrained`` are part of the loading time in one row and left out in the next. Both sides read the same
folder and the same random prompt and generate the same number of tokens, greedily. Ours reads its tokenizer too;
transformers uses its ``sdpa`` attention and its own cache, and is not compiled.

The models are random and take 2.5 GB, in a folder that is removed at the end. With --work they are written there if they
are not there, and stay for the next run: a Qwen2 of 0.5B, and the vision tower and
the speech networks of VITA-1.5 beside a decoder of one layer. Of the speech decoder the width of 896, 1024 codes and 40
tokens a second are upstream's; its MLP and heads are those of the Qwen2 of that width. The vocoder has HiFi-GAN's usual
sizes.

Test: ``pytest tests/tools/test_bench.py``
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import statistics
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from tools import make_checkpoint
from tools.bench import products
from tools.bench.process import Side
from vita_ref import VitaConfig
from vita_ref.analysis import budget
from vita_ref.config import CodecConfig, DecoderConfig, SpeechConfig
from vita_ref.files.folders import read_config
from vita_ref.files.speech import read_codec_config
from vita_ref.scale.products import BFLOAT16_UNITS, processor_class
from vita_ref.speech import Speech

ROOT = Path(__file__).resolve().parents[2]
MODEL, VISION = make_checkpoint.QWEN2_HALF_B, VitaConfig.preset("vita-1.5").vision
AUDIO = VitaConfig.preset("vita-1.5").audio
PARTS = VitaConfig(DecoderConfig(640, 3584, 64, 1, 2, 2, 64), VISION, AUDIO, eos_token_ids=(5,), template="demo")
SPEECH = SpeechConfig(1024, 2, DecoderConfig(1028, 896, 4864, 4, 14, 14, 64, rope_theta=1e4, attention_bias=False))
CODEC = CodecConfig(1024, (0,) * 8, (8, 5, 5, 3), (16, 11, 11, 5), 512, (3, 7, 11), ((1, 3, 5),) * 3)
SIZES = {
    "prompt": 1091,  # tokens
    "new": 32,
    "lengths": (1024, 2048, 4096, 8192, 16384),  # of long prompts
    "megabytes": 1024,  # summed, for the memory bus
    "square": 4096,  # multiplied, for the arithmetic units
    "words": 12,  # spoken
    "codes": 200,  # codec tokens of these words: five seconds
    "frames": 298,  # of a sound of three seconds
    "short": 64,  # tokens of the prompt whose memory is measured
}
MISSING = "transformers is not installed"
GOALS = {  # what -> the goal on processors without bfloat16 units, and with them
    "decode, bfloat16": ((">=", 1.7), (">=", 2)),
    "decode, float32": ((">=", 1.2), (">=", 1.8)),
    "prefill": ((">=", 4), (">=", 1.05)),
    "prefill against float32": ((">=", 1), None),
    "picture": (("<=", 1.1), ("<=", 0.7)),
    "sound": (("<=", 1.1), ("<=", 0.8)),
    "decode, int8": ((">=", 1.7), None),
    "decode, int4": ((">=", 2.2), (">=", 1.5)),
    "prefill, quantized": ((">=", 0.8), (">=", 0.8)),
}


class Row(NamedTuple):
    """A line of the table: medians, and the ratio of each turn. The goal is about the median ratio."""

    what: str
    unit: str
    ours: float
    other: float | str | None  # theirs, or the limit; or the reason why there is none
    ratios: tuple = ()
    goal: tuple | None = None  # (">=" or "<=", ratio)

    @property
    def met(self):
        if self.goal is None or not self.ratios:
            return None
        sign, bound = self.goal
        return statistics.median(self.ratios) >= bound if sign == ">=" else statistics.median(self.ratios) <= bound


def goal(what):
    """The goal of `GOALS` for the class of this processor."""
    return GOALS[what][processor_class() in BFLOAT16_UNITS]


def compared(what, unit, ours, others, goal=None, less_is_better=False):
    """The row of two lists with one figure for each turn; ``others`` is None if that side is missing."""
    if others is None:
        return Row(what, unit, statistics.median(ours), MISSING, (), goal)
    ratios = tuple(b / a if less_is_better else a / b for a, b in zip(ours, others, strict=True))
    return Row(what, unit, statistics.median(ours), statistics.median(others), ratios, goal)


# ---- arithmetic


def read_elements(decoder):
    """Elements of all matrices that one token reads: those of the layers and of the head, not the embedding table."""
    return budget.layer_elements(decoder) + decoder.vocab_size * decoder.hidden_size


def least_bytes(decoder, length):
    """Bytes of the weights and of the cache of so many positions, in bfloat16."""
    weights = budget.count_weights(VitaConfig(decoder), torch.bfloat16)["total"]["bytes"]
    return weights + 2 * budget.cache_elements(decoder, 1, length)


def tile_flops(vision, width):
    """Operations of one tile in the products of vision tower and projector."""
    return budget.vision_flops(vision, vision.grid**2) + budget.projector_flops(vision, width, vision.num_positions)


# ---- what is measured


def write_models(work, model=MODEL, parts=PARTS, speech=SPEECH, codec=CODEC):
    """Writes the folders that do not exist yet. Returns that of the language model and that of the other parts."""
    for name, preset, config in (("qwen2-0.5b", "qwen2-0.5b", model), ("parts", "demo", parts)):
        if not (work / name).is_dir():
            part = work / f"{name}.part"
            make_checkpoint.write(part, preset, "bfloat16", config=config)
            if config is parts:
                write_speech(part / "speech", speech, codec)
            part.rename(work / name)
    return work / "qwen2-0.5b", work / "parts"


def write_speech(folder, speech, codec):
    """A speech folder of random weights. Its decoder never emits the end token."""
    torch.manual_seed(0)
    model, c = Speech(speech, codec).requires_grad_(False), speech.decoder
    model.decoder.out_fnn.bias[speech.specials[2]] = -1e4
    sizes = {"attention_dim": c.hidden_size, "attention_heads": c.num_attention_heads}
    sizes |= {"linear_units": c.intermediate_size, "num_blocks": c.num_hidden_layers}
    sizes = {f"transformer_{k}": v for k, v in sizes.items()}
    fixed = {"resblock": "1", "n_code_groups": 1, "residul_layer": 1, "global_code_num": len(codec.global_tokens)}
    configs = [c.hidden_size, speech.num_codes, sizes], fixed | asdict(codec)
    for name, module, config in zip(("decoder", "codec"), (model.decoder, model.codec), configs):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.json").write_text(json.dumps(config))
        save_file(module.state_dict(), folder / name / "final.safetensors")


# ---- rows


def figures(column, name, scale=1.0):
    """One figure of every turn, None if the side is missing."""
    return None if column[0] is None else [answer[name] * scale for answer in column]


class Bench:
    """The rows of the table, some from each method. ``start(who)`` returns a `Side`, or None if it is missing."""

    def __init__(self, model, parts, start, pairs=5, sizes=SIZES):
        self.model, self.parts, self.start, self.pairs, self.sizes = str(model), str(parts), start, pairs, sizes
        self.config, self.results = read_config(model).decoder, {}

    def turns(self, *plays):
        """Runs several (who, what it loads, task, arguments) in turns. Returns the answers to each, None if it is missing.

        A side loads once and lives until the last turn. Results are kept, and equal turns are not repeated.
        """
        if plays not in self.results:
            with contextlib.ExitStack() as stack:
                sides = {}
                for who, loads, *_ in plays:
                    if (who, loads) not in sides and (side := self.start(who)):
                        sides[who, loads] = stack.enter_context(side)
                        if loads:
                            side.ask("load", *loads)
                rounds = []
                for _ in range(1 + self.pairs):
                    tasks = [(sides.get(play[:2]), *play[2:]) for play in plays]
                    rounds.append([side and side.ask(task, *arguments) for side, task, arguments in tasks])
            self.results[plays] = list(zip(*rounds[1:]))
        return self.results[plays]

    def fresh(self, who, *tasks):
        """All figures of a new process that loads the model and does some tasks; None if the side is missing."""
        start = time.perf_counter()
        if not (side := self.start(who)):
            return None
        with side:
            answers = {}
            for task, *arguments in (("load", self.model, "bfloat16"), *tasks):
                answers |= side.ask(task, *arguments)
            return answers | {"whole_s": time.perf_counter() - start}

    def generates(self, who, *loads, batch=1):
        """The task of reading prompts and generating tokens."""
        return who, (self.model, *loads), "tokens", (self.sizes["prompt"], batch, self.sizes["new"])

    def against(self, dtype):
        """The turns of the bus, ours and theirs."""
        bus = ("limits", None, "bus", (self.sizes["megabytes"],))
        return self.turns(bus, self.generates("ours", dtype), self.generates("theirs", dtype))

    def bus(self):
        speeds = figures(self.turns(("limits", None, "bus", (self.sizes["megabytes"],)))[0], "bytes_per_s", 1e-9)
        return [Row("memory bus, a plain sum", "GB/s", max(speeds), None)]

    def decode(self, dtype="bfloat16", share=0.62):
        bus, ours, theirs = self.against(dtype)
        read = read_elements(self.config) * getattr(torch, dtype).itemsize  # bytes for a token
        rate, speed = figures(ours, "decode"), figures(ours, "decode", read / 1e9)
        return [
            compared(f"decode, {dtype}", "tokens/s", rate, figures(theirs, "decode"), goal(f"decode, {dtype}")),
            compared(f"decode, {dtype}, of the bus", "GB/s", speed, figures(bus, "bytes_per_s", 1e-9), (">=", share)),
        ]

    def float32(self):
        return self.decode("float32", 0.85)

    def prefill(self):
        wide = self.generates("theirs", "float32")
        ours, theirs, wide = self.turns(self.generates("ours", "bfloat16"), self.generates("theirs", "bfloat16"), wide)
        what, rate = f"prefill {self.sizes['prompt']}, bfloat16", figures(ours, "prefill")
        return [
            compared(what, "tokens/s", rate, figures(theirs, "prefill"), goal("prefill")),
            compared("against float32", "tokens/s", rate, figures(wide, "prefill"), goal("prefill against float32")),
        ]

    def batch(self):
        four, theirs = (self.generates(who, "bfloat16", batch=4) for who in ("ours", "theirs"))
        four, theirs, one = (figures(c, "decode") for c in self.turns(four, theirs, self.generates("ours", "bfloat16")))
        return [
            compared("decode, bfloat16, batch 4", "tokens/s", four, theirs, (">=", 1.5)),
            compared("decode, bfloat16, batch 4, over our batch 1", "tokens/s", four, one, (">=", 3)),
        ]

    def packed(self):
        """The same with ``pack``, which is for several rows: one row alone is slower with it."""
        ours, length = ("ours", "bfloat16", "packed"), self.sizes["prompt"]
        plays = self.generates(*ours), self.generates("theirs", "bfloat16"), self.generates(*ours, batch=4)
        plays += self.generates("theirs", "bfloat16", batch=4), self.generates("ours", "bfloat16")
        packed, theirs, four, their_four, one = self.turns(*plays)
        rates, fours = [figures(c, "prefill") for c in (packed, theirs)], figures(four, "decode")
        return [
            compared(f"prefill {length}, bfloat16, packed", "tokens/s", *rates, (">=", 1.3)),
            compared("decode, bfloat16, packed", "tokens/s", *(figures(c, "decode") for c in (packed, theirs)), (">=", 1.7)),
            compared("decode, bfloat16, batch 4, packed", "tokens/s", fours, figures(their_four, "decode"), (">=", 1.5)),
            compared("the same over our batch 1, not packed", "tokens/s", fours, figures(one, "decode"), (">=", 3)),
        ]

    def int8(self, method="int8"):
        small, ours = self.turns(self.generates("ours", "bfloat16", method), self.generates("ours", "bfloat16"))
        decode, prefill = ([figures(c, name) for c in (small, ours)] for name in ("decode", "prefill"))
        return [
            compared(f"decode, {method}, over our bfloat16", "tokens/s", *decode, goal(f"decode, {method}")),
            compared(f"prefill, {method}, likewise", "tokens/s", *prefill, goal("prefill, quantized")),
        ]

    def int4(self):
        return self.int8("int4")

    def growth(self):
        """No second copy of a matrix: what a prompt needs beside the weights, against the largest matrix in bfloat16."""
        largest, rows = 2 * self.config.vocab_size * self.config.hidden_size, []
        for method in (None, "int8", "int4"):
            (found,) = self.turns(("ours", (self.model, "bfloat16", method), "growth", (self.sizes["short"],)))
            grown = figures(found, "bytes", 1e-9)
            what = f"memory of a prompt of {self.sizes['short']}, {method or 'bfloat16'}"
            rows.append(compared(what, "GB", grown, [largest / 1e9] * len(grown), ("<=", 0.5)))
        return rows

    def load(self):
        rounds = [[self.fresh(who, ("tokens", 8, 1, 1)) for who in ("ours", "theirs")] for _ in range(1 + self.pairs)]
        ours, theirs = zip(*rounds[1:])
        whole = figures(ours, "whole_s"), figures(theirs, "whole_s")
        bare = [c[0] and [a["load_s"] + a["first_s"] for a in c] for c in (ours, theirs)]
        late = [c[0] and [a["load_s"] + a["first_s"] + a["late_s"] for a in c] for c in (ours, theirs)]
        return [
            compared("load to first token, bfloat16", "s", *late, (">=", 4), less_is_better=True),
            compared("the same without their late imports", "s", *bare, (">=", 4), less_is_better=True),
            compared("the same with Python and all imports", "s", *whole, less_is_better=True),
        ]

    def memory(self):
        prompt, written = self.sizes["prompt"], 8
        tasks = ("tokens", prompt, 1, written), ("memory",)
        ours, theirs = self.fresh("ours", *tasks), self.fresh("theirs", *tasks)
        return [
            self.peak("peak memory, bfloat16, over the imports", ours, prompt + written, ("<=", 1.1)),
            compared("all of it", "GB", figures([ours], "peak", 1e-9), figures([theirs], "peak", 1e-9)),
        ]

    def peak(self, what, answers, length, goal=None):
        """The row of the peak memory of a process, beside its weights and cache."""
        over = answers["peak"] - answers["imports"]
        return compared(what, "GB", [over / 1e9], [least_bytes(self.config, length) / 1e9], goal)

    def long(self):
        rows, longest = [], max(self.sizes["lengths"])
        mask = 1 + 4 * longest**2 / least_bytes(self.config, longest)  # with one float32 mask [S, S]
        for n in self.sizes["lengths"]:
            answers = self.fresh("ours", ("tokens", n, 1, 1), ("memory",))
            rows.append(Row(f"prompt of {n} tokens, bfloat16", "s", answers["first_s"], None))
            goal = ("<=", mask) if n == longest else None
            rows.append(self.peak("its peak memory, over the imports", answers, n, goal))
        return rows

    def picture(self):
        config = read_config(self.parts)
        flops, size = tile_flops(config.vision, config.decoder.hidden_size), config.vision.image_size
        dtypes = ("bfloat16", "float32")
        plays = [("ours", (self.parts, dtype), "picture", ()) for dtype in dtypes]
        plays += [("limits", None, "matmul", (dtype, self.sizes["square"])) for dtype in dtypes]
        *times, half, full = self.turns(*plays)
        times = [figures(column, "tile_s") for column in times]
        rows = [compared(f"picture, a tile of {size}, bfloat16, float32", "s", *times, goal("picture"))]
        for dtype, seconds, limit in zip(dtypes, times, (half, full)):
            rates = [flops / 1e9 / s for s in seconds], figures(limit, "flops", 1e-9)
            rows.append(compared(f"its products in {dtype}, {flops / 1e9:.0f} GFLOP", "GFLOP/s", *rates))
        return rows

    def sound(self):
        plays = [("ours", (self.parts, dtype), "sound", (self.sizes["frames"],)) for dtype in ("bfloat16", "float32")]
        times = [figures(column, "sound_s") for column in self.turns(*plays)]
        return [compared(f"sound of {self.sizes['frames']} frames, bfloat16, float32", "s", *times, goal("sound"))]

    def speech(self):
        codec = read_codec_config(Path(self.parts) / "speech/codec/model.json")
        (answers,) = self.turns(("ours", (self.parts, "bfloat16"), "speak", (self.sizes["words"], self.sizes["codes"])))
        one, real = [1.0] * self.pairs, [codec.sampling_rate / codec.hop] * self.pairs  # a second; its tokens
        vocoding, streaming = ([a[name] / a["sound_s"] for a in answers] for name in ("vocode_s", "stream_s"))
        first, sound = (statistics.median(figures(answers, name)) for name in ("first_s", "sound_s"))
        return [
            compared("speech, codec tokens", "tokens/s", figures(answers, "tokens"), real, (">=", 1)),
            compared("vocoder, a second of sound", "s", vocoding, one, None, less_is_better=True),
            compared("both as a stream, a second of sound", "s", streaming, one, (">=", 1), less_is_better=True),
            Row(f"time to first sound, of {sound:.1f} s", "s", first, None),
        ]


ROWS = ("bus", "decode", "float32", "prefill", "batch", "packed", "int8", "int4", "growth", "load", "memory", "long")
ROWS += ("picture", "sound", "speech")


# ---- the table


def cells(row):
    """The cells of a row as they are printed."""
    def figure(x):
        return f"{x:.0f}" if x >= 100 else f"{x:.3g}"

    other = "" if row.other is None else row.other if isinstance(row.other, str) else f"{figure(row.other)} {row.unit}"
    ratio = goal = ""
    if row.ratios:
        ratio = f"{statistics.median(row.ratios):.2f} [{min(row.ratios):.2f}..{max(row.ratios):.2f}]"
    if row.goal:
        goal = f"{row.goal[0]} {row.goal[1]:.3g}"
    return row.what, f"{figure(row.ours)} {row.unit}", other, ratio, goal, {None: "", True: "yes", False: "NO"}[row.met]


def line(texts):
    """A line of a Markdown table."""
    return "| " + " | ".join(f"{text:{wide}}" for text, wide in zip(texts, (44, 14, 14, 19, 7, 4))) + " |"


def machine(threads):
    """The machine and the libraries that the figures belong to."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    theirs = version("transformers") if importlib.util.find_spec("transformers") else "not installed"
    about = {"cpu": name[1] if name else platform.processor(), "class": processor_class(), "cores": os.cpu_count()}
    about |= {"threads": threads, "python": platform.python_version(), "torch": torch.__version__}
    return about | {"transformers": theirs}


def arguments():
    """The options of the command line."""
    form = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    p = argparse.ArgumentParser("python -m tools.bench", **form)
    p.add_argument("--products", action="store_true", help="measure the ways of scale/products.py instead")
    p.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, metavar="NAME", help=f"of {', '.join(ROWS)}")
    p.add_argument("--pairs", type=int, default=5, help="turns that count")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--work", type=Path, help="keep the random models (2.5 GB) here")
    p.add_argument("--new", type=int, default=SIZES["new"], help="tokens generated in a turn")
    p.add_argument("--json", type=Path, help="also write the figures there")
    a = p.parse_args()
    if a.pairs < 1 or a.new < 2 or a.threads < 1:
        p.error("--pairs and --threads must be at least 1 and --new at least 2")
    return a


@contextlib.contextmanager
def models_folder(given):
    """The folder of the random models: the given one, or one that is removed at the end."""
    if given is not None:
        yield given
        return
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT / "build") as folder:
        yield Path(folder)


def main():
    a = arguments()
    if a.products:
        products.report(a.threads, a.pairs)
        return
    installed = importlib.util.find_spec("transformers") is not None

    def start(who):
        return Side(who, a.threads) if installed or who != "theirs" else None

    with models_folder(a.work) as work:
        measure(a, Bench(*write_models(work), start, a.pairs, SIZES | {"new": a.new}))


def measure(a, bench):
    """Prints the rows, and writes them to --json."""
    about, rows = machine(a.threads), []
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(line(("what", "ours", "theirs or limit", "ratio", "goal", "met")), line(["---"] * 6), sep="\n", flush=True)
    for name in a.only:
        for row in getattr(bench, name)():
            rows.append(row._asdict() | {"met": row.met})
            print(line(cells(row)), flush=True)
    if a.json:
        a.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
