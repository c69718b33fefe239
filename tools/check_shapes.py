"""Runs the shape comments of vita_ref: each ``# [B, S, D]`` is compared with the tensor that its line makes.

    source -> claims -> the model runs under a trace function, which looks at the results of these lines -> verdicts

A claim is a comment that begins with ``[`` or ``each [``. It is on the first or last line of an assignment or a return,
and describes the tensor that is assigned or returned; of a list or tuple, the first one or, after ``each``, all of them.
A size in it is

    3         that number
    H         (a letter or a word) one number during a whole call: that of the config (see `letters`), or of a local
              integer with this name (b is B; `LOCALS` has others), or else the first number that is met in the call
    B*(S-1)   computed, if its letters are known
    I_i       another number each time

The verdict on a claim is

    ok               it holds, and it could have failed
    wrong            a tensor has another shape, or the comment cannot be read
    never executed   nothing ran its line
    vacuous          no size in it was ever compared with a second number, so it could not fail

The models have the full size of the presets, but two layers in each part, on the meta device, where tensors have
shapes and no memory. Code that needs values runs on the CPU: the audio encoder, functions outside the model, and all
of a small model, in which no two sizes of a part are equal, so that no letter can stand for another.

Run: ``python tools/check_shapes.py [--json]``. The exit status is 1 if a verdict is not ok.
Test: ``pytest tests/tools/test_check_shapes.py``
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
from unittest import mock

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import make_checkpoint
from vita_ref import Vita, audio, fbank, image, sampling, video
from vita_ref.analysis import observe
from vita_ref.analysis.look import look_at
from vita_ref.analysis.trace import trace
from vita_ref.config import (
    AudioConfig,
    CodecConfig,
    DecoderConfig,
    SpeechConfig,
    VisionConfig,
    VitaConfig,
    YarnConfig,
)
from vita_ref.decoder import rope_angles
from vita_ref.files.cmvn import read_cmvn
from vita_ref.inputs import Batch
from vita_ref.request import PreparedRequest
from vita_ref.scale import convolutions, int4, int8, products, use_fast
from vita_ref.serve.group import run_group
from vita_ref.serve.jobs import AnswerJob
from vita_ref.serve.prefixes import Prefixes
from vita_ref.serve.questions import read_question
from vita_ref.serve.sounds import encoded
from vita_ref.speech import Speech
from vita_ref.voice import vocoder
from vita_ref.voice.decoder import apply_penalty

FOLDER = Path(__file__).resolve().parents[1] / "vita_ref"
COMMENT = re.compile(r"#\s*(?:each\s+)?\[([^\]]*)\]")
VERDICTS = ("ok", "wrong", "never executed", "vacuous")
LOCALS = {  # file, or file.function: letters whose local integer has another name
    "analysis/derived": {"T": "total"},
    "analysis/occlusion": {"B": "len(rows)", "n": "len(points)", "units": "len(plan.units)", "T": "len(embeds)"},
    "analysis/occlusion.rows": {"B": "len(units)"},
    "analysis/occlusion.to_positions": {"n": "len(falls)", "T": "length"},
    "chat._inputs": {"n": "len(elements)"},
    "cache.next_positions": {"B": "self.keys.shape[1]", "T": "self.length"},
    "cache.advance": {"S": "n"},
    "decoder": {"H": "heads", "G": "groups"},
    "decoder.next_token_loss": {"B": "labels.shape[0]", "S": "labels.shape[1]"},
    "inputs.decoder_inputs": {"B": "len(batch.input_ids)", "n": "batch.input_ids.shape[1]"},
    "inputs.text_ids": {"B": "batch.input_ids.shape[0]", "S": "batch.input_ids.shape[1]"},
    "masks.last_hidden": {"B": "hidden.shape[0]", "S": "hidden.shape[1]"},
    "model.generate": {"B": "len(x.embeds)"},
    "scale/blocks": {"rows": "len(rows)", "block": "stop - start"},
    "scale/convolutions": {"block": "len(weight[channels])"},
    "scale/int8.convert": {"block": "stop - start", "inputs": "rows.shape[1]"},
    "scale/int4": {"rows": "len(rows)", "groups": "len(scale)"},
    "scale/int4.convert": {"block": "stop - start", "inputs": "weight.shape[1] * (1 if packed else 2)"},
    "scale/int4.pack": {"blocks": "len(packed)"},
    "scale/int4.unpack": {"blocks": "len(part)"},
    "scale/int4._rows": {"n": "len(nibbles)", "inputs": "2 * nibbles.shape[1]"},
    "scale/int4._columns": {"blocks": "count", "n": "count * 2 * half"},
    "scale/int4.stored_tensors": {"outputs": "self.outputs", "inputs": "len(self.weight_scale) * self.group"},
    "scale/products": {"rows": "len(rows)", "inputs": "weight.shape[1]", "outputs": "len(weight)"},
    "serve/prefixes.cache": {"B": "len(found)", "T": "longest"},
    "voice/decoder.prefill": {"U": "rows.shape[1]"},
    "splice": {"S": "longest"},
    "splice.splice_row": {"S": "end"},
    "splice.shared_position_ids": {"S": "length"},
    "video": {"X": "edge", "Y": "edge"},
    "voice/speak._pieces": {"U": "len(ids)"},
    "voice/vocoder.split_quiet": {"W": "len(sound)"},
}


# ---- claims


def file_key(path, folder):
    """The name of a file in claims and in `LOCALS`: its path in the folder without .py, such as voice/vocoder."""
    return Path(path).relative_to(folder).with_suffix("").as_posix()


@dataclass(eq=False)
class Claim:
    """One comment and what was observed about it.

    Attributes:
        file, line, text: where it is, and the comment.
        sizes: expressions.
        first, last: lines of its statement; 0 if it has none.
        target: what is assigned; None if the statement is a return.
        runs: names of the runs that executed it.
        faults: messages; the claim is wrong if there are any.
        compared: places in ``sizes`` that were compared with a second number.
    """

    file: str
    line: int
    text: str
    sizes: list
    first: int = 0
    last: int = 0
    target: str | None = None
    runs: set = field(default_factory=set)
    faults: list = field(default_factory=list)
    compared: set = field(default_factory=set)

    @property
    def each(self):
        """Whether the claim describes all tensors of a list."""
        return "each" in self.text.partition("[")[0]

    @property
    def verdict(self):
        if self.faults or not self.runs:
            return "wrong" if self.faults else "never executed"
        computed = {i for i, size in enumerate(self.sizes) if not (size.isidentifier() or size.isdigit())}
        return "ok" if self.compared and computed <= self.compared else "vacuous"

    @property
    def why(self):
        if self.faults:
            return self.faults[0]
        return "" if self.first else "it is on no line of an assignment or a return"


def read_claims(path, folder=FOLDER):
    """Yields the claims of one file."""
    statements = {}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)) and node.value:
            statements[node.lineno] = statements[node.end_lineno] = node
    with path.open("rb") as source:
        comments = [token for token in tokenize.tokenize(source.readline) if token.type == tokenize.COMMENT]
    for comment in comments:
        if match := COMMENT.match(comment.string):
            sizes = [size.strip() for size in match[1].split(",") if size.strip()]
            claim = Claim(file_key(path, folder), comment.start[0], match[0], sizes)
            if not all(map(is_expression, sizes)):
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


# ---- comparison


class ShapeTracer:
    """A trace function for `sys.settrace` that compares claims with the results of their lines.

    Attributes:
        run: the name of the present run.
        letters: the sizes of its config, by file and letter.
    """

    def __init__(self, claims):
        self.claims, self.run, self.letters = claims, "", {}
        self.lines = {}  # code object: its claims by the first line of their statements
        self.calls = {}  # frame: the letters met in this call; a generator comes back to its frame

    def __call__(self, frame, event, arg):
        """Called for every function call. Only code with claims is traced line by line."""
        if frame.f_code not in self.lines:
            self.lines[frame.f_code] = self.claims_of(frame.f_code)
        here = self.lines[frame.f_code]
        return self.trace_lines(here, self.calls.setdefault(frame, {})) if here else None

    def claims_of(self, code):
        path = Path(code.co_filename)
        if FOLDER not in path.parents or code.co_name.startswith("<"):  # a comprehension is on a line of its function
            return {}
        numbers, file = {line for *_, line in code.co_lines()}, file_key(path, FOLDER)
        return {claim.first: claim for claim in self.claims if claim.file == file and claim.first in numbers}

    def trace_lines(self, here, met):
        """The trace function of one call. It compares a claim once its statement has ended without an exception."""
        pending = None

        def look(frame, event, arg):
            nonlocal pending
            if event == "exception":
                pending = None
            elif not pending:
                pass
            elif event == "return" or pending.target and not pending.first <= frame.f_lineno <= pending.last:
                value = eval(pending.target, frame.f_globals, frame.f_locals) if pending.target else arg
                self.compare_value(pending, frame, value, met)
                pending = None
            if event == "line":
                pending = here.get(frame.f_lineno, pending)
            return look

        return look

    def compare_value(self, claim, frame, value, met):
        """Compares a claim with a tensor, or with those of a list or tuple that it describes."""
        values = list(value) if isinstance(value, (tuple, list)) else [value]
        for tensor in values if claim.each else values[:1]:
            claim.runs.add(self.run)
            if isinstance(tensor, torch.Tensor):
                shape = list(tensor.shape)
                fault = self.compare_shape(claim, frame, shape, met)
            else:
                shape, fault = type(tensor).__name__, "expected a tensor"
            if fault:
                claim.faults.append(f"{fault}, got {shape} (run {self.run}, {frame.f_code.co_name})")

    def compare_shape(self, claim, frame, shape, met):
        """What was expected, if the shape differs from the claim, else None. New letters are added to ``met``."""
        if len(shape) != len(claim.sizes):
            return f"expected {len(claim.sizes)} dimensions"
        known, unknown = {}, set()
        for name in names_in(",".join(claim.sizes)):
            config = self.letters.get(claim.file, {}).get(name)
            values = {config, local_value(claim.file, frame, name), met.get(name, [None])[0]} - {None}
            if len(values) > 1:
                return f"expected one {name} in a call, it is {' and '.join(map(str, sorted(values)))}"
            known |= {name: values.pop()} if values else {}
        for i, size in enumerate(claim.sizes):
            if size.isidentifier() and size not in known:
                known[size] = shape[i]
                unknown.add(i)
                if not size.endswith("_i"):
                    met[size] = shape[i], claim, i
        for i, size in enumerate(claim.sizes):
            names = names_in(size)
            if i in unknown or not names <= known.keys():
                continue
            claim.compared.add(i)
            for _, first, place in (met[name] for name in names & met.keys()):
                first.compared.add(place)  # the place where the letter was met first could have failed too
            expected = eval(size, {}, known)
            if expected != shape[i]:
                return f"expected {size} = {expected:g} at place {i}"
        return None


def names_in(sizes):
    return set(re.findall(r"[A-Za-z]\w*", sizes))


def local_value(file, frame, name):
    """The value of a letter as a local integer of the frame, or None."""
    names = LOCALS.get(file, {}) | LOCALS.get(f"{file}.{frame.f_code.co_name}", {})
    for expression in (name, name.lower(), names.get(name, name)):
        try:
            value = eval(expression, {}, frame.f_locals)
        except NameError:
            continue
        if type(value) is int:
            return value
    return None


# ---- models and letters

SMALL = VitaConfig(
    DecoderConfig(61, 24, 40, 2, 8, 4, 10),
    VisionConfig(18, 44, 2, 3, image_size=56),
    AudioConfig(20, 30, 2, 5, subsampling_size=12, num_mel_bins=27),
)
TALKING = replace(  # a small model whose tokens are bytes
    VitaConfig.preset("demo"),
    decoder=replace(SMALL.decoder, vocab_size=300, max_position_embeddings=600),
    vision=replace(SMALL.vision, image_size=28, patch_size=7),
    audio=AudioConfig(20, 30, 1, 5, subsampling_size=12),
    eos_token_ids=(299,),
    template="chatml",
)
SPEECH = SpeechConfig(1024, 1, DecoderConfig(1028, 896, 4864, 2, 14, 14, 64, attention_bias=False))  # released width
CODEC = CodecConfig(1024, (0,) * 8, (8, 5, 5, 3), (16, 11, 11, 5), 512, (3,), ((1, 3),))


def decoder_letters(d):
    """Sizes of a decoder, for the files that use its letters."""
    sizes = {"H": d.num_attention_heads, "G": d.num_key_value_heads, "K": d.head_dim, "L": d.num_hidden_layers}
    sizes |= {"D": d.hidden_size, "V": d.vocab_size, "F": d.intermediate_size}
    files = ("decoder", "cache", "masks", "speech", "voice/decoder", "analysis/trace")
    files += ("analysis/observe", "analysis/derived", "analysis/occlusion", "serve/prefixes")
    return dict.fromkeys(files, sizes) | {"sampling": {"V": d.vocab_size}}


def letters(config):
    """The sizes of a config by file and letter. The letters of each file are those of its docstring."""
    d, v, a = config.decoder, config.vision, config.audio
    width, bins = {"D": d.hidden_size}, {"M": a.num_mel_bins}
    vision = {"E": v.hidden_size, "H": v.num_attention_heads, "F": v.intermediate_size, "factor": v.shuffle}
    sound = {"E": a.hidden_size, "C": a.subsampling_size, "H": a.num_attention_heads}
    return decoder_letters(d) | {
        "vision": width | vision | {"K": v.hidden_size // v.num_attention_heads},
        "audio": width | bins | sound | {"F": a.intermediate_size, "K": a.hidden_size // a.num_attention_heads},
        "fbank": bins,
        "files/cmvn": bins,
        "request": bins,
        "inputs": width,
        "model": width | bins | {"V": d.vocab_size},
        "splice": width,
        "video": width,
        "voice/speak": width,
    }


# ---- runs


def run_passes(vita, device):
    """Passes that need no values: chunks, steps, padding, attention maps, the loss, media and the splice."""
    width, ids = vita.config.decoder.hidden_size, torch.arange(21).view(3, 7)
    sizes = vita.config.decoder
    rope_angles(ids.to(device), sizes.head_dim, sizes.rope_theta, YarnConfig(4.0, sizes.max_position_embeddings))
    out = vita(ids, labels=ids.to(device), output_attentions=True)
    out = vita(ids[:, :4], cache=out.cache, output_attentions=True)
    out = vita(ids[:, :1], cache=out.cache)
    out.cache.truncate(5)
    vita(ids[:, :1], cache=out.cache, output_attentions=True)
    padded = (torch.arange(7) >= torch.arange(3)[:, None]).to(device)  # on the left
    vita(ids[:, :1], cache=vita(ids, attention_mask=padded, labels=ids.to(device)).cache)
    for mask in (None, padded):  # the first step only: the second one needs to know which rows have ended
        inputs = vita.inputs(Batch(ids.to(device), attention_mask=mask))
        next(vita.steps(inputs, sampling.Sampling(max_new_tokens=2)))
    packed = torch.ones(7, 7, dtype=torch.bool, device=device).tril().expand(3, 7, 7)
    embeds = torch.randn(3, 7, width, device=device)
    vita.decoder(embeds, attention_mask=packed, position_ids=ids.to(device))
    vita.decoder.new_cache(3).advance(4)
    run_media(vita, partial(torch.randn, device=device))


def run_media(vita, noise):
    """Images, and embeddings of sounds, through the tower and the splice."""
    config, width, v = vita.config, vita.config.decoder.hidden_size, vita.config.vision
    side, step, image_id, audio_id = v.image_size, v.patch_size * v.shuffle, config.image_token_index, config.audio_token_index
    prompts = [torch.tensor([1, image_id, 2]), torch.tensor([3, audio_id]), torch.tensor([4, 5, image_id, 6, 7])]
    media = {"images": [noise(4, 3, side, side), noise(3, side, side)]}
    media |= {"audios": {"audios": [noise(9, width)], "kind": "embeds"}}
    out = vita(prompts, labels=prompts, shared_v_pid_stride=4, **media)
    more = torch.tensor([[image_id, 1], [2, audio_id], [image_id, 3]])
    vita(more, attention_mask=torch.ones(3, 2), cache=out.cache, **media)
    vita.encode_images(noise(2, 3, side + 2 * step, side + step))
    heads = v.num_attention_heads
    vita.vision.encoder.layers[0].attn.core(*noise(3, 2, heads, 5, v.hidden_size // heads), need_weights=True)
    video.slow_fast([noise(16, width)] * 5, [1] * 5)


def run_generation(vita):
    """What needs values: sounds, answers, traces and speech."""
    config = vita.config
    sounds = {"audios": [torch.randn(frames, config.audio.num_mel_bins) for frames in (150, 90)]}
    prompts = [torch.tensor([1, config.audio_token_index]), torch.tensor([2, 3, config.audio_token_index])]
    with trace(vita, deep=True):
        vita.generate(prompts, audios=sounds, max_new_tokens=4, eos_token_id=(), repetition_penalty=1.2)
    with trace(vita):
        vita(torch.arange(12).view(3, 4))
    vita.generate(torch.arange(12).view(3, 4), max_new_tokens=2, eos_token_id=(), do_sample=True)
    ids, side = [1, config.image_token_index, 2, config.audio_token_index], config.vision.image_size
    look_at(vita, PreparedRequest(torch.tensor(ids), [torch.randn(1, 3, side, side)], sounds["audios"][1:]), answer_ids=[3, 4])
    observe.pool(torch.randn(5, 17), config.vision, 4)
    vita.tokenizer = SimpleNamespace(encode=lambda text: [1, 2, 3])
    vita.speech = SimpleNamespace(stream=lambda rows, voice: [])
    list(vita.speak_stream("Yes."))


def run_server(vita):
    """What the server remembers of conversations, and the samples of speech."""
    prefixes, ids = Prefixes(), torch.arange(12).view(3, 4)
    cache = vita(ids).cache
    prefixes.keep(cache, 1, ids[1].tolist(), [], {})
    prefix, _, past = prefixes.find([*ids[1].tolist(), 5])
    Prefixes.cache(vita.decoder, [(prefix, past), (prefix, past - 1), (None, 0)])
    encoded([torch.zeros(3), torch.zeros(4)], 24000, "pcm")


def run_audio_encoder(encoder):
    """Two sounds, and the weights of attention."""
    encoder(torch.zeros(2, 30, encoder.config.num_mel_bins), [30, 20])
    attention, size = encoder.encoder["enc"][1].encoders[0].self_attn, encoder.config.hidden_size
    heads = attention.num_heads
    q, k, v = torch.randn(3, 2, heads, 7, size // heads)
    attention.core(q, k, v, torch.zeros(2, 1, 7), audio.visible_spans(7, 4, 0), need_weights=True)


def run_functions(config):
    """Functions outside the model."""
    logits, bins = torch.randn(3, config.decoder.vocab_size), config.audio.num_mel_bins
    sampling.repetition_penalty(logits, logits > 1, 1.5)
    sampling.seen_tokens([torch.arange(5)] * 3, None, config.decoder.vocab_size, "cpu")
    sampling.sample(logits, sampling.Sampling(do_sample=True, temperature=0.8, top_k=5, top_p=0.9))
    fbank.log_mel(torch.randn(1, 16000), 16000, num_mel_bins=bins)
    picture = Image.new("RGB", (90, 40))
    image.load_tiles(picture, tile=config.vision.image_size)
    image.load_square(picture, tile=config.vision.image_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "global_cmvn"
        file.write_text(json.dumps({"mean_stat": [1.0] * bins, "var_stat": [9.0] * bins, "frame_num": 3}))
        read_cmvn(file, is_json=True)


def run_scale():
    """Quantised and fast products."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight, scale = int8.quantize(torch.randn(32, 64))
        int8.int8_linear(torch.randn(2, 3, 64, dtype=dtype), weight, scale, torch.zeros(32, dtype=dtype))
    weight = torch.randn(204, 500)  # large enough for every way
    for way in products.WAYS.values():
        way(torch.randn(3, 500), weight)
    with mock.patch.object(products, "choose", lambda x, weight: products.WAYS["halves"]):  # on every processor
        products.linear(torch.randn(1, 3, 500), weight, torch.zeros(204))
    if products.can_pack(torch.float32):
        products.packed_linears(packed := torch.nn.Sequential(torch.nn.Linear(500, 204)))
        products.pack_weight(packed[0], "weight", weight)
        packed(torch.randn(6, 500))
    linear, weight = int4.Int4Linear(torch.nn.Linear(70, 40)), torch.randn(40, 70)  # no whole blocks, no whole groups
    int4.assign(linear, "weight", weight)
    rows = linear.stored_tensors()
    for dtype in (torch.float32, torch.bfloat16):  # the plain path, and the kernel
        linear.to(dtype)(torch.randn(3, 70, dtype=dtype))
        int4.int4_linear(torch.randn(3, 70, dtype=dtype), rows["weight"], rows["weight_scale"], 40)
    with mock.patch.object(products, "processor_class", lambda: "avx2"):
        convolution = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2, dtype=torch.bfloat16))
        use_fast(convolution, always=True)
        with mock.patch.object(convolutions, "BLOCK", 24):  # two of the channels
            convolution(torch.randn(2, 3, 9, 8, dtype=torch.bfloat16))


def run_conversation(vita):
    """A conversation that is saved and loaded, and answers that a server remembers."""
    with tempfile.TemporaryDirectory() as folder:
        chat, file = vita.chat(max_new_tokens=2), Path(folder) / "chat.json"
        chat.ask("A?", Image.new("RGB", (90, 40)), [(torch.randn(8000), 16000)])
        chat.save(file)
        vita.chat().load(file, vita).ask("B?")
    prefixes = Prefixes()
    for texts in (["A?"], ["A? B?", "C?"]):  # the second time behind the first prompt
        messages = [[{"role": "user", "content": text}] for text in texts]
        jobs = [AnswerJob(read_question({"messages": each, "max_tokens": 3}, vita), lambda event: None) for each in messages]
        for job in jobs:
            job.prepare(vita, vita.chat(), prefixes)
        list(run_group(vita, jobs, prefixes))


def run_speech(speech):
    """The speech decoder and the vocoder."""
    rows = torch.randn(3, 2 * SPEECH.decoder.hidden_size)
    list(speech.stream(rows, chunk=1, padding=1, window=7, threshold=9.0, max_tokens=2))
    list(speech.tokens(rows, top_k=3, penalty_window=4, max_tokens=2))
    apply_penalty(torch.randn(1, SPEECH.decoder.vocab_size), [1, 2], 1.1)
    vocoder.split_quiet(torch.zeros(5), torch.zeros(9), 4, 0.1)


def all_runs():
    """Yields (name, letters, function). The models are built here, before they are traced."""
    torch.ones(1, device="meta") + 1  # makes torch import hundreds of modules, which would be slow under a trace
    for name in ("vita-1.5", "documented"):
        full = VitaConfig.preset(name)
        parts = {part: replace(getattr(full, part), num_hidden_layers=2) for part in ("decoder", "vision", "audio")}
        config = replace(full, **parts)
        with torch.device("meta"):
            vita = Vita(config).eval()
        yield name, letters(config), partial(run_passes, vita, "meta")
        yield name, letters(config), partial(run_audio_encoder, vita.audio.to_empty(device="cpu"))  # it needs values
        yield name, letters(config), partial(run_functions, config)
    rare = replace(SMALL.audio, position_encoding="abs-enc", normalize_before=False, adapter_norm="batch")
    vita, encoder = Vita(SMALL).eval(), audio.AudioEncoder(rare, SMALL.decoder.hidden_size).eval()
    small = (partial(run_passes, vita, "cpu"), partial(run_generation, vita), partial(run_audio_encoder, encoder))
    for run in (*small, partial(run_functions, SMALL), run_scale, partial(run_server, vita)):
        yield "small", letters(SMALL), run
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint.write(folder, "demo", config=TALKING)
        vita = Vita.from_pretrained(folder, dtype=torch.float32)
        yield "small", letters(TALKING), partial(run_conversation, vita)
    yield "speech", decoder_letters(SPEECH.decoder), partial(run_speech, Speech(SPEECH, CODEC).eval())


# ---- verdicts


def check(folder=FOLDER, only=""):
    """The claims of all files in a folder (vita_ref, or a copy with other comments) after the runs named ``only``."""
    claims = [claim for path in sorted(Path(folder).rglob("*.py")) for claim in read_claims(path, folder)]
    tracer, before = ShapeTracer(claims), sys.gettrace()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for tracer.run, tracer.letters, run in all_runs():
            if tracer.run.startswith(only):
                sys.settrace(tracer)
                try:
                    run()
                finally:
                    sys.settrace(before)
                    tracer.calls.clear()
    return claims


def count(claims):
    """For each file, and for all of them: the number of claims, of those run at full size, and of each verdict."""
    files = {file: [c for c in claims if c.file == file] for file in sorted({c.file for c in claims})}
    return {
        file: {"claims": len(group), "full size": sum(bool(c.runs - {"small"}) for c in group)}
        | {verdict: sum(c.verdict == verdict for c in group) for verdict in VERDICTS}
        for file, group in (files | {"all": claims}).items()
    }


def main(argv=None):
    """Entry point. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json, claims = parser.parse_args(argv).json, check()
    rows = count(claims)
    if as_json:
        names = ("file", "line", "text", "verdict", "why")
        listed = [{name: getattr(c, name) for name in names} | {"runs": sorted(c.runs)} for c in claims]
        print(json.dumps({"files": rows, "claims": listed}, indent=1))
    else:
        print(f"{'':16}" + "".join(f"{name:>16}" for name in rows["all"]))
        for file, row in rows.items():
            print(f"{file:16}" + "".join(f"{number or '':>16}" for number in row.values()))
        for c in claims:
            if c.verdict != "ok":
                print(f"{c.file}.py:{c.line}: {c.text} {c.verdict}{': ' * bool(c.why)}{c.why}")
    return int(any(c.verdict != "ok" for c in claims))


if __name__ == "__main__":
    sys.exit(main())
