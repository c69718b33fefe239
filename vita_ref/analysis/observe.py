"""What one run of a request shows while it runs, by hooks: the maps that multiplied v, hidden states, logits, times.

    with observe(vita, tokens=32) as run:
        generate one row
    run.passes[t].attention[layer]    [H, T]   the attention of the position that gave token t, as it was used

A trace keeps the whole prompt pass and nothing of later tokens (see ``trace.py``). Here it is the other way round: of every
pass only the last position is kept, which is the one that the next token is chosen from. So that its map is the one that
was used and the memory stays small, the last query of each pass takes the eager path, the others the fused one; the
result goes on through the model. In the towers the same holds for the chosen tiles.

L decoder layers, D width, H heads, S new, T all positions, K head size, V vocabulary, P positions of a tower.

Test: ``pytest tests/analysis/test_look.py``
"""

import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from ..audio import encoder_position_count
from ..decoder import eager_attention
from ..masks import Mask

SOUND_POSITIONS = 1024  # of the longest sound whose attention is kept: 41 s
TOWER_ROWS = 260  # larger towers keep one row for each position of the prompt
TOWER_NUMBERS = 600_000  # of all tower maps together; beyond, some tiles and layers are left out


@dataclass
class Pass:
    """One pass of the decoder, at its last position.

    Shapes: attention L of [H, T]; heads L of [H*K], what the heads give before the output projection; attention_norms
    and mlp_norms L numbers: the length of what each adds; hidden L + 1 of [D], the residual stream; logits [V].
    """

    attention: list = field(default_factory=list)
    heads: list = field(default_factory=list)
    attention_norms: list = field(default_factory=list)
    mlp_norms: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    logits: torch.Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """One call of a part of the model: what went in and out, and how long it took."""

    name: str
    shape_in: tuple
    shape: tuple
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class TowerMap:
    """Attention of the vision tower or the audio encoder, the mean over its heads.

    Attributes:
        kind, medium, tile: "image" with the number of the tile in the request, or "audio" with that of the sound.
        layer: its number.
        weights: [rows, keys]; with a class token it is the first row and key.
        pooled: positions that one row or key stands for; 1 if all are there.
    """

    kind: str
    number: int
    layer: int
    weights: torch.Tensor
    pooled: int = 1


@dataclass
class Run:
    """Everything that was observed.

    ``inputs`` has for each layer a list of what entered it, [S, D] of each pass; ``angles`` pairs [1, 1, S, K/2].
    ``notes`` say what was left out; ``position_ids`` are those of the prompt; ``tiles`` and ``sounds`` count those seen.
    """

    passes: list = field(default_factory=list)
    stages: list = field(default_factory=list)
    towers: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    angles: list = field(default_factory=list)
    position_ids: list = field(default_factory=list)
    tiles: int = 0
    sounds: int = 0

    def prompt_stages(self):
        """The decoder's passes over the prompt, and the head behind them."""
        end = next(i for i, stage in enumerate(self.stages) if stage.name == "head")
        return [stage for stage in self.stages[: end + 1] if stage.name in ("decoder", "head")]

    def layer_inputs(self, layer):
        """What entered a layer at every position so far. Shapes: -> [T, D]."""
        return torch.cat(self.inputs[layer])  # [T, D]

    def rotation(self):
        """Cosine and sine at every position so far."""
        return tuple(torch.cat(parts, 2) for parts in zip(*self.angles))


@contextmanager
def observe(vita, tokens=32, keep_inputs=0):
    """Yields a `Run` that is filled while one request is answered; only the first ``tokens`` passes are kept.

    Products are plain meanwhile, as in a trace. ``keep_inputs`` is the number of layers, from the first,
    whose inputs are kept, for maps that are derived.
    """
    run, products = Run(inputs=[[] for _ in vita.decoder.layers]), vita.generation_products
    vita.generation_products = nullcontext
    handles = DecoderHooks(vita.decoder, run, tokens, keep_inputs).handles
    try:
        handles += timer(vita.decoder, run, "decoder", lambda args, out: out.last_hidden_state)
        handles += timer(vita.decoder.lm_head, run, "head", lambda args, out: out)
        if vita.vision is not None:
            handles += timer(vita.vision, run, "vision tower", lambda args, out: out)
            handles += timer(vita.projector, run, "projector", lambda args, out: out)
            handles += vision_hooks(vita, run)
        if vita.audio is not None:
            handles += timer(vita.audio, run, "audio encoder", lambda args, out: out.embeds)
            handles += audio_hooks(vita, run)
        yield run
    finally:
        vita.generation_products = products
        for handle in handles:
            handle.remove()


def timer(module, run, name, result):
    """Records each call of a module as a `Stage`."""
    started = []

    def begin(module, args, kwargs):
        started.append(time.perf_counter())

    def end(module, args, kwargs, out):
        seconds, tensor = time.perf_counter() - started.pop(), result(args, out)
        given = args[0] if args else kwargs["inputs_embeds"]
        run.stages.append(Stage(name, tuple(given.shape), tuple(tensor.shape), tensor.nbytes, seconds))

    return [
        module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
        module.register_forward_hook(end, with_kwargs=True),
    ]


def copy(tensor):
    """A copy on the CPU, in its own dtype."""
    return tensor.detach().to("cpu", copy=True)


# ---- the decoder


class DecoderHooks:
    """Fills ``run.passes`` with the last position of each pass of one row."""

    def __init__(self, decoder, run, tokens, keep_inputs):
        self.run, self.tokens, self.keep_inputs = run, tokens, keep_inputs
        self.wanted = False  # whether this pass is kept
        self.handles = [decoder.register_forward_pre_hook(self.begin, with_kwargs=True)]
        for number, layer in enumerate(decoder.layers):
            self.handles += self.layer_hooks(number, layer)
        self.handles.append(decoder.lm_head.register_forward_hook(self.keep_logits))

    def begin(self, decoder, args, kwargs):
        passes = self.run.passes
        if self.wanted:  # a long prompt is read in several passes: only the last one gives a token
            passes[-1] = Pass()
        elif len(passes) < self.tokens:
            self.wanted = True
            passes.append(Pass())
        if len(passes) == 1 and self.wanted and kwargs.get("position_ids") is not None:
            self.run.position_ids += kwargs["position_ids"][0].tolist()

    def layer_hooks(self, number, layer):
        attention = layer.self_attn
        return [
            layer.register_forward_pre_hook(lambda module, args: self.enter(number, *args[:2])),
            attention.core.register_forward_hook(self.attend),
            attention.o_proj.register_forward_pre_hook(lambda module, args: self.add("heads", args[0])),
            attention.register_forward_hook(lambda module, args, out: self.add_norm("attention_norms", out[0])),
            layer.mlp.register_forward_hook(lambda module, args, out: self.add_norm("mlp_norms", out)),
            layer.register_forward_hook(lambda module, args, out: self.leave(number, out[0])),
        ]

    def add(self, name, tensor):
        """Appends the last position of a tensor [1, S, ...] to a list of the pass."""
        if self.wanted:
            getattr(self.run.passes[-1], name).append(copy(tensor[0, -1]))

    def add_norm(self, name, tensor):
        if self.wanted:
            getattr(self.run.passes[-1], name).append(float(tensor[0, -1].float().norm()))

    def enter(self, number, x, angles):
        """A layer's input; the first one also has the embeddings."""
        if number == 0:
            self.add("hidden", x)
            if self.wanted and self.keep_inputs:
                self.run.angles.append(tuple(map(copy, angles)))
        if self.wanted and number < self.keep_inputs:
            self.run.inputs[number].append(copy(x[0]))

    def leave(self, number, x):
        self.add("hidden", x)

    def attend(self, core, args, out):
        """The last query again, on the eager path; its result and its map replace what the fused path gave."""
        if not self.wanted:
            return None
        (q, k, v, mask), (fused, weights) = args[:4], out
        if weights is None:
            allowed = mask.rows(q.shape[2] - 1, q.shape[2], q.device)
            last, weights = eager_attention(q[:, :, -1:], k, v, Mask(allowed=allowed))  # [B, H, 1, K]
            fused = torch.cat([fused[:, :, :-1], last], 2)  # [B, H, S, K]
        self.run.passes[-1].attention.append(copy(weights[0, :, -1]))
        return fused, None

    def keep_logits(self, head, args, out):
        if self.wanted:
            self.run.passes[-1].logits = copy(out.reshape(-1, out.shape[-1])[-1])  # [V]
            self.wanted = False


# ---- the towers


def chosen(total, most):
    """At most ``most`` evenly spread numbers below ``total``, with the last one; the others are left out."""
    return range(total) if total <= most else sorted({round(i * (total - 1) / max(most - 1, 1)) for i in range(most)})


def vision_hooks(vita, run):
    """Records the attention of tiles. With many patches, of the last tiles only, which the thumbnail is one of."""
    config, layers, first = vita.config.vision, vita.vision.encoder.layers, 0
    patches = config.grid**2
    group = config.shuffle**2 if patches + 1 > TOWER_ROWS else 1
    numbers = (patches // group + 1) ** 2
    kept_layers = set(chosen(len(layers), max(2, TOWER_NUMBERS // numbers)))
    most_tiles = max(1, TOWER_NUMBERS // (numbers * len(kept_layers)))

    def begin(module, args):
        nonlocal first
        first, run.tiles = run.tiles, run.tiles + len(args[0])

    def hook(layer):
        def attend(core, args, out):
            q, k, v = args[:3]
            n = len(q)
            for tile in range(max(0, n - most_tiles), n) if q.shape[2] == patches + 1 else ():
                rows = rows_of(config, q.device, group)
                part = q[tile : tile + 1, :, rows], k[tile : tile + 1], v[tile : tile + 1]
                used, weights = core.forward(*part, need_weights=True)
                out[0][tile][:, rows] = used[0]
                mean = pool(weights[0].float().mean(0), config, group)
                run.towers.append(TowerMap("image", first + tile, layer, copy(mean), group))
            return out

        return attend

    handles = [vita.vision.register_forward_pre_hook(begin)]
    return handles + [layers[i].attn.core.register_forward_hook(hook(i)) for i in sorted(kept_layers)]


def rows_of(config, device, group):
    """The tower's rows that are kept: all, or the class token and the first patch of each position of the prompt."""
    numbers = torch.arange(1, config.grid**2 + 1, device=device).view(config.grid, config.grid)
    step = config.shuffle if group > 1 else 1
    return torch.cat([numbers.new_zeros(1), numbers[::step, ::step].flatten()])


def pool(weights, config, group):
    """Adds the weights of the patches of one position: [rows, P] -> [rows, positions + 1]."""
    if group == 1:
        return weights
    side, f = config.grid // config.shuffle, config.shuffle
    grid = weights[:, 1:].view(-1, side, f, side, f).sum((2, 4))  # [rows, side, side]
    return torch.cat([weights[:, :1], grid.flatten(1)], 1)


def audio_hooks(vita, run):
    """Records the attention of the audio encoder, of sounds that are not too long."""
    transformer, first, lengths = vita.audio.encoder["enc"][1], 0, []
    layers = transformer.encoders

    def begin(module, args):
        nonlocal first, lengths
        lengths = torch.as_tensor(args[1]).tolist()
        first, run.sounds = run.sounds, run.sounds + len(lengths)
        if encoder_position_count(max(lengths)) > SOUND_POSITIONS:
            run.notes.append("the attention of the audio encoder is left out: a sound is longer than 41 s")

    def hook(layer):
        def attend(core, args, out):
            if args[0].shape[2] > SOUND_POSITIONS:
                return None
            used, weights = core.forward(*args[:5], need_weights=True)
            for i, frames in enumerate(lengths):
                n = encoder_position_count(frames)
                stride = -(-n // 128)
                rows = weights[i, :, :n:stride, :n].float().mean(0)  # [-(-n // stride), n]
                parts = [part.sum(1) for part in rows.split(stride, 1)]
                run.towers.append(TowerMap("audio", first + i, layer, copy(torch.stack(parts, 1)), stride))
            return used, None

        return attend

    kept = chosen(len(layers), 6)
    handles = [vita.audio.register_forward_pre_hook(begin)]
    return handles + [layers[i].self_attn.core.register_forward_hook(hook(i)) for i in kept]
