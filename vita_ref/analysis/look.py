"""What a page shows about one answer, as arrays by name: ``look = vita.look("What color is the star?", images=["x.jpg"])``.

    look.attention[layer]  [n, H, T]  observed: the weights that multiplied v, at the position that gave each token
    look.average           [n, T]     derived: their mean over layers and heads
    look.rollout           [n, T]     derived: attention through all layers
    look.relevance         [n, T]     derived: attention times its gradient
    look.gradient          [n, T]     derived: gradient times input
    look.occlusion         [n, T]     derived: how much the log-probability falls if the place is covered; NaN: not covered
    look.norms             [n, L+1]   observed: the norm of the residual stream before and after each layer
    look.attention_norms, look.mlp_norms  [n, L]  observed: the norm of what each adds
    look.head_norms        [n, L, H]  derived: the norm of what each head adds
    look.lens              [n, L+1]   derived: the probability of the token after each layer, and ``lens_top``
    look.positions         a `Position` for each of the T columns: the prompt, then the answer
    look.towers            observed: attention of the vision tower and the audio encoder, the mean over heads

n explained tokens, T positions of the prompt and of the answer but its last one, L layers, H heads.

Test: ``pytest tests/analysis/test_look.py``
"""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from ..files.messages import shown
from ..inputs import check_inputs, split_options
from ..request import Request, as_request, collate
from ..sampling import Sampling
from . import budget, derived, occlusion, sources
from .observe import observe
from .positions import Position, positions_of, text_of
from .road import road

MAPS = {  # name -> what it is, in the words of the page
    "average": "attention, mean over layers and heads",
    "rollout": "attention rollout",
    "relevance": "attention times gradient",
    "gradient": "gradient times input",
    "occlusion": "occlusion",
}
TOKENS = 32  # explained at most, by default
NUMBERS = 20_000_000  # of all attention maps
INPUT_BYTES, MAP_BYTES = 2**30, 2**32  # of the layers' inputs, and of one layer while it is computed again
COPIES = 8  # of a map [H, T, T] that one layer with its gradient needs
TOP = 5


@dataclass(frozen=True)
class Token:
    """One explained token: what was chosen, and the likeliest alternatives as (id, text, probability).

    Probabilities are those of the logits, before temperature, penalties and filters.
    """

    id: int
    text: str
    probability: float
    logprob: float
    top: tuple


@dataclass(repr=False, eq=False)
class Look:
    """One answer and where it came from; the module describes the arrays (numpy float32). What was left out is None."""

    question: str
    text: str
    tokens: list
    total_tokens: int  # of the answer; the first ``len(tokens)`` are explained
    positions: list
    pictures: list
    sounds: list
    attention: list
    norms: np.ndarray
    attention_norms: np.ndarray
    mlp_norms: np.ndarray
    head_norms: np.ndarray
    lens: np.ndarray
    lens_top: list  # for each token and layer, a list of (text, probability)
    towers: list
    road: list
    model: str
    vision: object  # the config of the vision tower, or None
    plan: object
    rollout: np.ndarray | None = None
    relevance: np.ndarray | None = None
    gradient: np.ndarray | None = None
    occlusion: np.ndarray | None = None
    falls: np.ndarray | None = None  # of each unit in ``plan.units``, [n, units]
    forced: bool = False  # whether the answer was given, not generated
    notes: list = field(default_factory=list)  # what was left out, and why

    @property
    def average(self):
        """Attention averaged over layers and heads, [n, T]."""
        return np.mean([layer.mean(1) for layer in self.attention], 0)

    def map(self, name, token=None):
        """One map by its name in `MAPS`, [n, T]; of one token, or of the "answer" (their mean), [T]. Raises: ValueError if it was left out."""
        values = getattr(self, name) if name in MAPS else None
        if values is None:
            there = [n for n in MAPS if getattr(self, n) is not None]
            raise ValueError(f"there is no map {name!r}; this look has {', '.join(there)}")
        if token == "answer":
            return values.mean(0)
        return values if token is None else values[token]

    def html(self, layers=None):
        """The page as one string; ``layers`` are those whose single heads it shows (None: as many as fit)."""
        from .page import page

        return page(self, layers)

    def save(self, path, layers=None):
        """Writes the page: one file that needs no other one. ``layers`` as in `html`."""
        html = self.html(layers)
        with open(path, "w", encoding="utf-8") as file:
            file.write(html)

    def table(self):
        """The positions as a table for a terminal."""
        from .table import table

        return table(self)

    def figure(self, token="answer", name=None):
        """One token, or the mean over the answer, as a figure: ``.svg``, ``.save("x.svg")``, and shown by itself in a notebook.

        The map is occlusion, or the average where there is none.
        """
        from .figure import Figure

        return Figure(self, token, name or ("average" if self.occlusion is None else "occlusion"))

    def _repr_html_(self):
        return self.figure()._repr_html_()

    def __repr__(self):
        maps = ", ".join(name for name in MAPS if getattr(self, name) is not None)
        return f"Look({shown(self.text)}: {len(self.tokens)} of {self.total_tokens} tokens, {len(self.positions)} positions; maps: {maps})"


def look(vita, text=None, images=(), audios=(), video=None, *, tokens=None, passes=None, derive=True, progress=None, **options):
    """Answers a question as `Vita.respond` does, and explains the answer.

    ``tokens`` is how many tokens of the answer are explained, ``passes`` how many passes occlusion may take (0: none);
    by default as many as `occlusion.FLOPS` allows. Without ``derive`` nothing is computed again: neither occlusion nor
    rollout, relevance and gradient. ``progress`` is called with a text before the slow part, and with
    (done, total) during it. The other options are those of `Request` and `Sampling`.
    Raises: ValueError as `Vita.respond`.
    """
    fields, options = split_options(options, Request, Sampling)
    return look_at_request(vita, Request(text, images, audios, video, **fields), tokens=tokens, passes=passes,
                           derive=derive, progress=progress, **options)  # fmt: skip


def look_at_request(vita, request, *, tokens=None, passes=None, derive=True, progress=None, **options):
    """The `Look` of a `Request`."""
    sampling, start = Sampling(**options).check(), time.perf_counter()
    request, *media = sources.open_media(as_request(request), vita.config)
    prepared = vita.prepare(request, sampling.max_new_tokens)
    seconds = time.perf_counter() - start
    return look_at(vita, prepared, sampling, media=media, question=request.prompt or "", prepare_seconds=seconds,
                   tokens=tokens, passes=passes, derive=derive, progress=progress)  # fmt: skip


def look_at(
    vita, prepared, sampling=None, *, answer_ids=None, media=(None, None), question="", prepare_seconds=None,
    tokens=None, passes=None, derive=True, progress=None,
):  # fmt: skip
    """The `Look` of a prepared request, such as the last turn of a conversation.

    ``answer_ids`` is an answer that exists: it is given to the model token by token and explained as it is. ``media``
    has fields of `Picture` and `Sound` for each image and sound (see `sources`); without them they have no names.
    Raises: ValueError for counts out of range, or as `Vita.generate`.
    """
    check_counts(tokens, passes, answer_ids)
    sampling = Sampling() if sampling is None else sampling
    pictures, sounds = sources.describe(prepared, *media)
    length = budget.count_positions(vita.config, prepared)["total"]
    tokens = default_tokens(vita.config.decoder, length) if tokens is None else tokens
    notes = left_out(vita, length + tokens) if derive else []
    kept = 0 if not derive else 1 if notes else len(vita.decoder.layers)  # occlusion needs the embeddings only
    with observe(vita, tokens, kept) as run:
        text, ids, segments = answer(vita, prepared, sampling, answer_ids)
    positions = positions_of(vita, prepared, segments, run.position_ids, pictures, sounds)
    points = [length - 1 + t for t in range(len(run.passes))]
    explained = ids[: len(points)]
    plan = occlusion.plan(vita, positions, pictures, sounds, len(points), passes or None, pass_seconds(run))
    if progress and kept:
        relevance = f"; relevance: as long as {2 * len(points) + 1} passes" * (not notes)
        progress(f"{'no occlusion' if passes == 0 else plan}{relevance}")
    found = arrays(vita, run, explained, length + len(points) - 1)
    if kept and not notes:
        before = lambda: progress and progress(0, plan.passes)  # it may raise an exception
        found |= slow_maps(vita, run, points, explained, notes, before)
    if kept and passes != 0:
        found |= covered(vita, run, plan, points, explained, positions, pictures, sounds, progress)
    elif kept:
        notes.append("occlusion was turned off")
    columns = answer_positions(vita, explained[:-1], length, positions[-1].position_id + 1)
    return Look(
        question=question, text=text, tokens=[token_of(vita, *pair) for pair in zip(run.passes, explained)],
        total_tokens=len(ids), positions=positions + columns, pictures=pictures, sounds=sounds, towers=run.towers, plan=plan,
        road=road(vita, prepared, run, pictures, sounds, len(ids), prepare_seconds), model=summary(vita),
        vision=vita.config.vision, forced=answer_ids is not None, notes=notes + run.notes, **found,
    )  # fmt: skip


def answer_positions(vita, ids, column, position_id):
    """The `Position` of each of these tokens of an answer, from a column and a position id on."""
    return [Position(column + t, "answer", text_of(vita, token), position_id + t, token) for t, token in enumerate(ids)]


def check_counts(tokens, passes, answer_ids):
    """Refuses counts out of range and an empty answer."""
    for name, value, least in (("tokens", tokens, 1), ("passes", passes, 0)):
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            raise ValueError(f"{name} must be an integer of at least {least}, or None, got {value!r:.80}")
    if answer_ids is not None and not len(answer_ids):
        raise ValueError("answer_ids must have at least one token")


def default_tokens(decoder, length):
    """How many tokens are explained: their maps must fit into memory, and their gradients must not take hours."""
    numbers = decoder.num_hidden_layers * decoder.num_attention_heads * (length + TOKENS)
    flops = budget.decoder_flops(decoder, length, length)
    return max(4, min(TOKENS, NUMBERS // numbers, int(occlusion.FLOPS / (2 * flops))))


def left_out(vita, length):
    """Why rollout, relevance and gradient would take too much memory, as a list; empty if they do not."""
    d, size = vita.config.decoder, vita.decoder.norm.weight.element_size()
    inputs, maps = d.num_hidden_layers * length * d.hidden_size * size, d.num_attention_heads * length**2 * 4 * COPIES
    if inputs <= INPUT_BYTES and maps <= MAP_BYTES:
        return []
    need = budget.short_number(max(inputs, maps), "B")
    return [f"rollout, relevance and gradient were left out: {length:,} positions would need {need} of memory for them"]


def answer(vita, prepared, sampling, answer_ids):
    """Runs the request: (text, ids of all new tokens, segments). Raises: ValueError if the answer fails."""
    if answer_ids is not None:
        ids = [int(i) for i in answer_ids]
        return vita.text(ids) if vita.tokenizer else "", ids, give(vita, prepared, ids)
    *_, [given] = vita.answer([prepared], sampling)
    if given.error or not given.ids:
        raise given.error or ValueError("the answer was stopped before its first token")
    return given.text, given.ids, given.segments


@torch.no_grad()
def give(vita, prepared, ids):
    """Passes over the prompt and each given token, as generation makes them. Returns the segments of the prompt."""
    x = vita.inputs(collate([prepared]))
    check_inputs(x)
    cache = vita.decoder.new_cache(1, x.embeds.shape[1] + len(ids))
    hidden = vita.read(x, cache)
    vita.decoder.lm_head(hidden)
    for token in ids[:-1]:
        embeds = vita.embed(torch.tensor([[token]], device=hidden.device))
        vita.decoder.lm_head(vita.decoder(embeds, cache=cache).last_hidden_state[:, 0])
    return x.segments[0]


def pass_seconds(run):
    """How long a pass of occlusion may take: what the prompt took in the decoder, and one call of each tower."""
    towers = {stage.name: stage.seconds for stage in reversed(run.stages) if stage.name not in ("decoder", "head")}
    return sum(towers.values()) + sum(stage.seconds for stage in run.prompt_stages())


def arrays(vita, run, ids, total):
    """What needs no further pass, as numpy arrays by name."""
    n, decoder = len(ids), vita.decoder
    layers, heads = len(decoder.layers), decoder.config.num_attention_heads
    attention = [np.zeros((n, heads, total), np.float32) for _ in range(layers)]
    for t, each in enumerate(run.passes):
        for layer, weights in enumerate(each.attention):
            attention[layer][t, :, : weights.shape[1]] = weights.float().numpy()
    chosen, best, probs = derived.logit_lens(decoder, run, ids)
    top = [
        [[(text_of(vita, i), p) for i, p in zip(*layer)] for layer in zip(*token)]
        for token in zip(best.tolist(), probs.tolist())
    ]
    norms = [[float(h.float().norm()) for h in each.hidden] for each in run.passes]
    numbers = {name: np.array([getattr(p, name) for p in run.passes], np.float32) for name in ("attention_norms", "mlp_norms")}
    return {"attention": attention, "norms": np.array(norms, np.float32), "lens": chosen.numpy(), "lens_top": top,
            "head_norms": derived.head_norms(decoder, run, n).numpy(), **numbers}  # fmt: skip


def slow_maps(vita, run, points, ids, notes, before):
    """Rollout, relevance and gradient; without the last two for weights that have no gradients.

    ``before`` is that of `backward_maps`.
    """
    try:
        maps = derived.backward_maps(vita.decoder, run, points, ids, before=before)
    except (RuntimeError, NotImplementedError) as error:
        notes.append(f"relevance was left out: these products have no gradient ({str(error).splitlines()[0]:.120})")
        with torch.no_grad():
            maps = derived.backward_maps(vita.decoder, run, points, ids, relevance=False)
    return {name: values.numpy() for name, values in maps.items()}


def covered(vita, run, plan, points, ids, positions, pictures, sounds, progress):
    """The falls of all units, and their map."""
    falls, _ = occlusion.occlude(vita, run, plan, points, ids, positions, pictures, sounds, progress)
    spread = occlusion.to_positions(falls, plan.units, len(positions) + len(points) - 1)
    return {"falls": falls.numpy(), "occlusion": spread.numpy()}


def token_of(vita, each, token):
    """The `Token` that a pass gave."""
    scores = each.logits.float().log_softmax(-1)
    best = scores.topk(min(TOP, len(scores)))
    top = tuple((i, text_of(vita, i), float(np.exp(p))) for i, p in zip(best.indices.tolist(), best.values.tolist()))
    return Token(token, text_of(vita, token), float(scores[token].exp()), float(scores[token]), top)


def summary(vita):
    """The model in one line."""
    d, dtype = vita.config.decoder, str(vita.decoder.norm.weight.dtype).removeprefix("torch.")
    heads = f"{d.num_attention_heads} query and {d.num_key_value_heads} key/value heads"
    return f"decoder of {d.num_hidden_layers} layers, width {d.hidden_size}, {heads}, {dtype}"
