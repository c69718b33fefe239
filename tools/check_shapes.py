"""Shape comments, executed: every ``# [B, S, D]`` in this folder is held against what its line makes.

    source -> claims -> the model runs, a trace function looks behind each such line -> verdicts

A claim is a comment that begins with ``[``, or with ``each [`` where a list is made. It stands on the first
or the last line of an assignment or a return, and speaks of the tensor assigned or returned. In it

    3         is itself
    H         or a word is one number in all of a call: the config's if it has one (see `letters`), that of a
              local integer of this name (b is B; `NAMES` has the others), or else the first that is found there
    B*(S-1)   is worked out, where its letters are known
    V_i       is another number each time

The model has the full size of the presets, but for two layers a part, on the meta device, where tensors have
shapes and no memory. What asks for values runs on the CPU: the ear, what stands beside the model, and all of a
small model, of which no two sizes in a part are equal, so that no letter passes for another. A claim is vacuous
where nothing that it says ever met a second number: it could not be false.

Run: ``python -m tools.check_shapes [--json]``; exit status 1 where a claim is wrong or never executed.
Test: ``pytest tests/test_claims.py``
"""

import argparse
import ast
import json
import re
import sys
import tempfile
import tokenize
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vita_ref import audio, fbank, image, sampling, video, vision
from vita_ref.analysis.trace import trace
from vita_ref.config import (
    AudioConfig,
    CodecConfig,
    DecoderConfig,
    SpeechConfig,
    VisionConfig,
    VitaConfig,
)
from vita_ref.files.cmvn import read_cmvn
from vita_ref.model import Vita
from vita_ref.scale import int8 as quant
from vita_ref.scale import products as linear
from vita_ref.speech import Speech
from vita_ref.voice import vocoder
from vita_ref.voice.decoder import apply_penalty

FOLDER = Path(__file__).resolve().parents[1] / "vita_ref"
COMMENT = re.compile(r"#\s*(?:each\s+)?\[([^\]]*)\]")
VERDICTS = ("ok", "wrong", "never executed", "vacuous")
NAMES = {  # letters as integers at hand that are not called so: in a file, or in one function of it
    "audio": {"P": "size"},
    "cache.next_positions": {"B": "self.keys.shape[1]", "T": "self.length"},
    "decoder": {"H": "heads", "G": "groups"},
    "decoder.next_token_loss": {"B": "labels.shape[0]", "S": "labels.shape[1]"},
    "image.load_tiles": {"R": "rows", "C": "columns", "E": "tile"},
    "scale.products": {"R": "len(rows)", "I": "weight.shape[1]", "O": "len(weight)"},
    "model.generate": {"B": "len(x.embeds)", "G": "len(written)"},
    "model.spoken_pieces": {"S": "len(ids)"},
    "voice.decoder.prefill": {"U": "rows.shape[1]"},
    "splice": {"L": "longest"},
    "splice.shared_position_ids": {"L": "length"},
    "video": {"X": "edge", "Y": "edge"},
    "vision": {"X": "columns", "Y": "rows", "R": "factor"},
    "voice.vocoder.split_quiet": {"W": "len(sound)"},
}


# ---- claims


@dataclass(eq=False)
class Claim:
    """One comment, and what became of it. ``first`` to ``last`` are the lines of its statement, 0 if it has none."""

    file: str
    line: int
    text: str
    sizes: list  # expressions
    first: int = 0
    last: int = 0
    target: str | None = None  # what was assigned; None: what is returned
    runs: set = field(default_factory=set)
    faults: list = field(default_factory=list)
    met: set = field(default_factory=set)  # places in ``sizes`` that met a second number

    @property
    def verdict(self):
        if self.faults or not self.runs:
            return "wrong" if self.faults else "never executed"
        worked_out = {i for i, size in enumerate(self.sizes) if not (size.isidentifier() or size.isdigit())}
        return "ok" if self.met and worked_out <= self.met else "vacuous"

    @property
    def why(self):
        return self.faults[0] if self.faults else "" if self.first else "it stands at no assignment and no return"


def name_of(file, folder):
    """How claims and the tables here name a file: "decoder", or "voice.decoder" in a sub-package."""
    return ".".join(Path(file).relative_to(folder).with_suffix("").parts)


def read(file, folder=FOLDER):
    """The claims of one file of the folder."""
    statements = {}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)) and node.value:
            statements[node.lineno] = statements[node.end_lineno] = node
    with file.open("rb") as source:
        comments = [t for t in tokenize.tokenize(source.readline) if t.type == tokenize.COMMENT]
    for comment in comments:
        if found := COMMENT.match(comment.string):
            sizes = [s.strip() for s in found[1].split(",") if s.strip()]
            claim = Claim(name_of(file, folder), comment.start[0], found[0], sizes)
            if not all(map(is_expression, claim.sizes)):
                claim.faults.append("it cannot be read")
            elif node := statements.get(claim.line):
                claim.first, claim.last = node.lineno, node.end_lineno
                if not isinstance(node, ast.Return):
                    claim.target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            yield claim


def is_expression(size):
    try:
        return bool(ast.parse(size, mode="eval"))
    except SyntaxError:
        return False


# ---- looking


class Watch:
    """A trace function for `sys.settrace` that holds claims against what their lines make.

    ``run`` is the name of what is running, ``letters`` are the sizes of its config by file.
    """

    def __init__(self, claims):
        self.claims, self.run, self.letters = claims, "", {}
        self.lines, self.calls = {}, {}  # the claims of each piece of code; the letters found in each call

    def __call__(self, frame, event, arg):
        """Asked at every call; only code with claims is followed line by line."""
        if frame.f_code not in self.lines:
            self.lines[frame.f_code] = self.of(frame.f_code)
        here = self.lines[frame.f_code]
        return self.follow(here, self.calls.setdefault(frame, {})) if here else None  # a generator returns to its frame

    def of(self, code):
        """The claims in a piece of code, by the first line of their statements."""
        file = Path(code.co_filename)
        own = FOLDER in file.parents and not code.co_name.startswith("<")  # a comprehension shares its function's line
        if not own:
            return {}
        name, numbers = name_of(file, FOLDER), {line for *_, line in code.co_lines()}
        return {c.first: c for c in self.claims if c.first in numbers and c.file == name}

    def follow(self, here, found):
        """A trace function for one call: holds a claim as soon as its statement is left without an exception."""
        pending = None

        def look(frame, event, arg):
            nonlocal pending
            if event == "exception":
                pending = None
            elif not pending:
                pass
            elif event == "return" or pending.target and not pending.first <= frame.f_lineno <= pending.last:
                value = eval(pending.target, frame.f_globals, frame.f_locals) if pending.target else arg
                self.hold(pending, frame, value, found)
                pending = None
            if event == "line":
                pending = here.get(frame.f_lineno, pending)
            return look

        return look

    def hold(self, claim, frame, value, found):
        """Holds a claim against a tensor, or against each of a list."""
        for tensor in value if isinstance(value, (tuple, list)) else [value]:
            claim.runs.add(self.run)
            if isinstance(tensor, torch.Tensor):
                shape = list(tensor.shape)
                fault = self.unify(claim, frame, shape, found)
            else:
                shape, fault = type(tensor).__name__, "expected a tensor"
            if fault:
                claim.faults.append(f"{fault}, got {shape} (run {self.run}, {frame.f_code.co_name})")

    def unify(self, claim, frame, shape, found):
        """What the claim expected if the shape is another, else None. Letters met for the first time are ``found``."""
        if len(shape) != len(claim.sizes):
            return f"expected {len(claim.sizes)} dimensions"
        known, free = {}, set()
        for name in names_in(",".join(claim.sizes)):
            config = self.letters.get(claim.file, {}).get(name)
            said = {config, at_hand(claim.file, frame, name), found.get(name, [None])[0]} - {None}
            if len(said) > 1:
                return f"expected one {name} in a call, it is {' and '.join(map(str, sorted(said)))}"
            known |= {name: said.pop()} if said else {}
        for i, size in enumerate(claim.sizes):
            if size.isidentifier() and size not in known:
                known[size] = shape[i]
                free.add(i)
                if not size.endswith("_i"):
                    found[size] = shape[i], claim, i
        for i, size in enumerate(claim.sizes):
            names = names_in(size)
            if i in free or not names <= known.keys():
                continue
            claim.met.add(i)
            for _, first, place in (found[name] for name in names & found.keys()):
                first.met.add(place)  # it could have been false as well
            expected = eval(size, {}, known)
            if expected != shape[i]:
                return f"expected {size} = {expected:g} at place {i}"
        return None


def names_in(sizes):
    return set(re.findall(r"[A-Za-z]\w*", sizes))


def at_hand(file, frame, name):
    """The number that a local integer gives a letter, or None."""
    names = NAMES.get(file, {}) | NAMES.get(f"{file}.{frame.f_code.co_name}", {})
    for expression in (name, name.lower(), names.get(name, name)):
        try:
            value = eval(expression, {}, frame.f_locals)
        except NameError:
            continue
        if type(value) is int:
            return value
    return None


# ---- what runs

SMALL = VitaConfig(
    DecoderConfig(61, 24, 40, 2, 8, 4, 10),
    VisionConfig(18, 44, 2, 3, image_size=56),
    AudioConfig(20, 30, 2, 5, subsampling_size=12, num_mel_bins=27),
)
TALKER = SpeechConfig(1024, 1, DecoderConfig(1028, 896, 4864, 2, 14, 14, 64, attention_bias=False))  # released width
CODEC = CodecConfig(1024, (0,) * 8, (8, 5, 5, 3), (16, 11, 11, 5), 512, (3,), ((1, 3),))


def text_letters(d):
    heads = {"H": d.num_attention_heads, "G": d.num_key_value_heads, "K": d.head_dim, "L": d.num_hidden_layers}
    text = heads | {"D": d.hidden_size, "V": d.vocab_size, "F": d.intermediate_size}
    return {
        "decoder": text,
        "cache": text,
        "speech": text,
        "voice.decoder": text,
        "analysis.trace": text,
        "sampling": {"V": d.vocab_size},
    }


def letters(config):
    """The sizes of a config by file and letter, each file's letters being those of its docstring."""
    d, v, a = config.decoder, config.vision, config.audio
    width, bins, heads = {"D": d.hidden_size}, {"M": a.num_mel_bins}, a.num_attention_heads
    eye = {"E": v.hidden_size, "H": v.num_attention_heads, "F": v.intermediate_size, "R": v.shuffle}
    ear = {"E": a.hidden_size, "U": a.subsampling_size, "H": heads}
    return text_letters(d) | {
        "vision": width | eye | {"K": v.hidden_size // v.num_attention_heads},
        "audio": width | bins | ear | {"K": a.hidden_size // heads},
        "fbank": bins | {"size": int(a.sample_rate * a.frame_length / 1000)},
        "model": width | bins | {"V": d.vocab_size},
        "cmvn": bins,
        "splice": width,
        "video": width,
    }


def think(vita, device):
    """All ways through the model that ask for no values: chunks, steps, padding, maps, loss, pictures, the splice."""
    config, width, v = vita.config, vita.config.decoder.hidden_size, vita.config.vision
    ids, side, step = torch.arange(21).view(3, 7), v.image_size, v.patch_size * v.shuffle
    picture, sound = config.image_token_index, config.audio_token_index

    def noise(*shape):
        return torch.randn(shape, device=device)

    out = vita(ids, labels=ids.to(device), output_attentions=True)
    out = vita(ids[:, :4], cache=out.cache, output_attentions=True)
    out = vita(ids[:, :1], cache=out.cache)
    out.cache.truncate(5)
    vita(ids[:, :1], cache=out.cache, output_attentions=True)
    padded = (torch.arange(7) >= torch.arange(3)[:, None]).to(device)  # on the left
    vita(ids[:, :1], cache=vita(ids, attention_mask=padded, labels=ids.to(device)).cache)
    seen = torch.zeros(3, config.decoder.vocab_size, dtype=torch.bool, device=device)
    for mask in (None, padded):  # the first step alone: the second one asks which rows have ended
        next(vita.steps(vita.inputs(ids, attention_mask=mask), max_new_tokens=2, repetition_penalty=2.0, seen=seen))
    packed = torch.ones(7, 7, dtype=torch.bool, device=device).tril().expand(3, 7, 7)
    vita.decoder(noise(3, 7, width), attention_mask=packed, position_ids=ids.to(device))
    vita.decoder.new_cache(3).advance(4)

    prompts = [torch.tensor([1, picture, 2]), torch.tensor([3, sound]), torch.tensor([4, 5, picture, 6, 7])]
    images, audios = [noise(4, 3, side, side), noise(3, side, side)], {"audios": [noise(9, width)], "kind": "embeds"}
    out = vita(prompts, images=images, audios=audios, labels=prompts, shared_v_pid_stride=4)
    more = torch.tensor([[picture, 1], [2, sound], [picture, 3]])
    vita(more, images=images, audios=audios, attention_mask=torch.ones(3, 2), cache=out.cache)
    vita.encode_images(noise(2, 3, side + 2 * step, side + step))
    video.slow_fast([noise(16, width)] * 5, [1] * 5)


def answer(vita):
    """What a model with values can do beyond: hear sounds, write answers, be traced, speak."""
    config = vita.config
    sounds = {"audios": [torch.randn(frames, config.audio.num_mel_bins) for frames in (150, 90)]}
    prompts = [torch.tensor([1, config.audio_token_index]), torch.tensor([2, 3, config.audio_token_index])]
    with trace(vita, deep=True):
        vita.generate(prompts, audios=sounds, max_new_tokens=4, eos_token_id=(), repetition_penalty=1.2)
    with trace(vita):
        vita.generate(torch.arange(12).view(3, 4), max_new_tokens=2, eos_token_id=(), do_sample=True)
    vita.tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    vita.speech = SimpleNamespace(stream=lambda rows, voice: [])
    list(vita.speak_stream("Yes."))


def listen(ear):
    ear(torch.zeros(2, 30, ear.config.num_mel_bins), [30, 20])


def work(config):
    """The functions beside the model."""
    from PIL import Image

    logits, bins = torch.randn(3, config.decoder.vocab_size), config.audio.num_mel_bins
    sampling.repetition_penalty(logits, logits > 1, 1.5)
    sampling.sample(logits, do_sample=True, temperature=0.8, top_k=5, top_p=0.9)
    fbank.log_mel(torch.randn(1, 16000), 16000, num_mel_bins=bins)
    image.load_tiles(Image.new("RGB", (90, 40)), tile=config.vision.image_size)
    image.load_square(Image.new("RGB", (90, 40)), tile=config.vision.image_size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight, scale = quant.quantize(torch.randn(32, 64))
        quant.int8_linear(torch.randn(2, 3, 64, dtype=dtype), weight, scale, torch.zeros(32, dtype=dtype))
    weight = torch.randn(204, 500)  # large enough for every way
    for way in products.WAYS.values():
        way(torch.randn(3, 500), weight)
    products.linear(torch.randn(1, 3, 500), weight, torch.zeros(204))
    if products.can_pack(torch.float32):
        products.packed_linears(packed := torch.nn.Sequential(torch.nn.Linear(500, 204)))
        products.pack_weight(packed[0], "weight", weight)
        packed(torch.randn(6, 500))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "global_cmvn"
        file.write_text(json.dumps({"mean_stat": [1.0] * bins, "var_stat": [9.0] * bins, "frame_num": 3}))
        read_cmvn(file, is_json=True)
    spans = audio.visible_spans(7, 3, 1)
    for part, core, more in (
        (config.vision, vision.VisionAttentionCore(), ()),
        (config.audio, audio.AudioAttentionCore(), (torch.zeros(2, 1, 7), spans)),
    ):
        heads = part.num_attention_heads
        core(*torch.randn(3, 2, heads, 7, part.hidden_size // heads), *more, need_weights=True)


def speak(speech):
    rows = torch.randn(3, 2 * TALKER.decoder.hidden_size)
    list(speech.stream(rows, chunk=1, padding=1, window=7, threshold=9.0, max_tokens=2))
    list(speech.tokens(rows, top_k=3, penalty_window=4, max_tokens=2))
    apply_penalty(torch.randn(1, TALKER.decoder.vocab_size), [1, 2], 1.1)
    vocoder.split_quiet(torch.zeros(5), torch.zeros(9), 4, 0.1)


def runs():
    """What runs: name, letters, function. Models are built here, unwatched."""
    torch.ones(1, device="meta") + 1  # makes torch import hundreds of modules, which would be slow to watch
    for name in ("vita-1.5", "documented"):
        full = VitaConfig.preset(name)
        parts = {part: replace(getattr(full, part), num_hidden_layers=2) for part in ("decoder", "vision", "audio")}
        config = replace(full, **parts)
        with torch.device("meta"):
            vita = Vita(config).eval()
        yield name, letters(config), partial(think, vita, "meta")
        yield name, letters(config), partial(listen, vita.audio.to_empty(device="cpu"))  # it asks lengths for values
        yield name, letters(config), partial(work, config)
    rare = replace(SMALL.audio, position_encoding="abs-enc", normalize_before=False, adapter_norm="batch")
    vita, ear = Vita(SMALL).eval(), audio.AudioEncoder(rare, SMALL.decoder.hidden_size).eval()
    for run in (partial(think, vita, "cpu"), partial(answer, vita), partial(listen, ear), partial(work, SMALL)):
        yield "small", letters(SMALL), run
    yield "speech", text_letters(TALKER.decoder), partial(speak, Speech(TALKER, CODEC).eval())


# ---- verdicts


def check(folder=FOLDER, only=""):
    """The claims in the files of a folder (this one, or a copy with other comments) after all runs, or some."""
    claims = [claim for file in sorted(Path(folder).rglob("*.py")) for claim in read(file, folder)]
    watch, before = Watch(claims), sys.gettrace()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for watch.run, watch.letters, run in runs():
            if watch.run.startswith(only):
                sys.settrace(watch)
                try:
                    run()
                finally:
                    sys.settrace(before)
                    watch.calls.clear()
    return claims


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json, claims = parser.parse_args(argv).json, check()
    files = {file: [c for c in claims if c.file == file] for file in sorted({c.file for c in claims})}
    rows = {
        file: {"claims": len(cs), "full size": sum(bool(c.runs - {"small"}) for c in cs)}
        | {verdict: sum(c.verdict == verdict for c in cs) for verdict in VERDICTS}
        for file, cs in (files | {"all": claims}).items()
    }
    if as_json:
        names = ("file", "line", "text", "verdict", "why")
        listed = [{name: getattr(c, name) for name in names} | {"runs": sorted(c.runs)} for c in claims]
        print(json.dumps({"files": rows, "claims": listed}, indent=1))
    else:
        print(f"{'':10}" + "".join(f"{name:>16}" for name in rows["all"]))
        for file, row in rows.items():
            print(f"{file:10}" + "".join(f"{count or '':>16}" for count in row.values()))
        for c in claims:
            if c.verdict != "ok":
                print(f"{c.file}.py:{c.line}: {c.text} {c.verdict}{': ' * bool(c.why)}{c.why}")
    return int(any(c.verdict in ("wrong", "never executed") for c in claims))


if __name__ == "__main__":
    sys.exit(main())
