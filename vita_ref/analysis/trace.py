"""What went where: every intermediate of a request by its name, the ground truth for those who port VITA.

    with trace(vita) as found:
        vita.respond("What is this?", images=["cat.jpg"])
    found["vision.0.layers.03"]  # [N, P, C], the output of the eye's fourth layer

The names, in the order of the flow; `tools/dump.py` puts the first and the last around the others:

    token_ids                      [B, I] long      the prompt, a negative id in the place of each picture or sound
    vision.0.tiles                 [N, 3, Y, X]     pixel values
    vision.0.embeddings            [N, P, C]        patches and class token with their positions
    vision.0.layers.00             [N, P, C]        each layer's output
    vision.0.tower                 [N, V, R*R*C]    scaled and shuffled
    vision.0.projector             [N, V, D]
    audio.0.fbank                  [T, M]
    audio.0.normalised             [T, M]
    audio.0.subsampled             [S, U]
    audio.0.input                  [S, E]           behind the input layer, before scale and positions
    audio.0.layers.00              [S, E]           each layer's output
    audio.0.encoder                [S, E]           the last one's, behind the norm if there is one
    audio.0.adapter                [A, D]           without learned rows in front
    spliced.inputs_embeds          [B, S, D]        what the decoder gets
    spliced.attention_mask         [B, S] bool
    spliced.position_ids           [B, S] long
    decoder.layers.00.q            [B, H, S, K]     deep only: queries, turned by their positions
    decoder.layers.00.k            [B, G, S, K]     deep only: keys, turned by their positions
    decoder.layers.00.v            [B, G, S, K]     deep only
    decoder.layers.00.attended     [B, S, H*K]      deep only: all heads, before the output projection
    decoder.layers.00.attention    [B, S, D]        deep only: behind it
    decoder.layers.00.mlp          [B, S, D]        deep only
    decoder.layers.00.output       [B, S, D]        each layer's output
    decoder.norm                   [B, S, D]
    logits                         [B, V]           of each row's last real position; of all of them [B, S, V]
    tokens                         [B, G] long      the first new tokens, greedily

``vision.0`` is the first pass through the eye, in which all tiles go together unless pictures differ in
size; ``audio.0`` is the first sound, cut to its own length. Numbers keep the dtype they were computed in.

Letters: those of vision.py, audio.py and decoder.py, each for its own rows; I ids of a prompt, G new tokens.

Test: ``pytest tests/test_trace.py``
"""

from contextlib import contextmanager

import torch

from ..audio import audio_token_count, encoder_position_count
from ..decoder import apply_rope as rotate
from ..decoder import rope_angles
from ..masks import count_positions, new_columns


@contextmanager
def trace(vita, *, deep=False, all_logits=False):
    """Gives a dict that fills while the model runs: name -> copy on the CPU, in the order of the flow.

    Of the decoder the first pass alone is kept, that over the prompt. ``deep`` looks into its layers
    too; ``all_logits`` gives the logits of every position. Meanwhile torch's deterministic algorithms are
    on, so that the same request gives the same numbers: otherwise `linear` picks its kernels by the clock.
    """
    found, before = {}, (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())

    def keep(name, tensor):
        found[name] = tensor.detach().to("cpu", copy=True).contiguous()

    hooks = decoder_hooks(vita.decoder, keep, deep, all_logits)
    if vita.vision is not None:
        hooks += vision_hooks(vita.vision, vita.projector, keep)
    if vita.audio is not None:
        hooks += audio_hooks(vita.audio, keep)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield found
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        for hook in hooks:
            hook.remove()


def vision_hooks(tower, projector, keep):
    """Looks at every pass through the eye, and numbers them."""
    number = -1

    def begin(module, args):
        nonlocal number
        number += 1
        keep(f"vision.{number}.tiles", args[0])

    def output(part):
        return lambda module, args, out: keep(f"vision.{number}.{part}", out)

    parts = {"embeddings": tower.embeddings}
    parts |= {f"layers.{i:02}": layer for i, layer in enumerate(tower.encoder.layers)}
    parts |= {"tower": tower, "projector": projector}
    hooks = [module.register_forward_hook(output(part)) for part, module in parts.items()]
    return [tower.register_forward_pre_hook(begin), *hooks]


def audio_hooks(ear, keep):
    """Looks at every pass through the ear, and numbers the sounds; their padding is left out."""
    first, frames = 0, []  # the number of this pass's first sound, and the length of each

    def each(part, rows, batch):
        for i, count in enumerate(frames):
            keep(f"audio.{first + i}.{part}", batch[i, : rows(count)])

    def begin(module, args):
        nonlocal first, frames
        fbank, lengths = args
        first, frames = first + len(frames), torch.as_tensor(lengths).tolist()
        each("fbank", int, fbank)

    def output(part, rows):
        return lambda module, args, out: each(part, rows, out)

    subsampling, transformer = ear.encoder["enc"]
    positions = {"subsampled": subsampling["core"], "input": transformer.embed}
    positions |= {f"layers.{i:02}": layer for i, layer in enumerate(transformer.encoders)}
    positions |= {"encoder": transformer}
    return [
        ear.register_forward_pre_hook(begin),
        ear.encoder["global_cmvn"].register_forward_hook(output("normalised", int)),  # a row a frame
        *(m.register_forward_hook(output(part, encoder_position_count)) for part, m in positions.items()),
        ear.adpter.register_forward_hook(output("adapter", audio_token_count)),
    ]


def decoder_hooks(decoder, keep, deep, all_logits):
    """Looks at the decoder's first pass, and then no more."""
    angles = last = None

    def begin(module, args, kwargs):
        nonlocal angles, last
        embeds = args[0] if args else kwargs["inputs_embeds"]  # [B, S, D]
        mask, positions, cache = (kwargs.get(name) for name in ("attention_mask", "position_ids", "cache"))
        b, s, _ = embeds.shape
        if positions is None:
            start = cache.next_positions if cache is not None else 0
            positions = count_positions(new_columns(mask, b, s, cache), start, b, s, embeds.device)  # [B, S]
        positions = positions.expand(b, s)  # [B, S]
        mask = embeds.new_ones(b, s, dtype=torch.bool) if mask is None else mask[:, -s:].bool()
        angles = rope_angles(positions, module.config.head_dim, module.config.rope_theta)
        last = (mask * torch.arange(1, s + 1, device=mask.device)).argmax(1)  # [B]
        keep("spliced.inputs_embeds", embeds)
        keep("spliced.attention_mask", mask)
        keep("spliced.position_ids", positions)

    def heads(name, turned):
        def see(module, args, out):
            x = out.unflatten(-1, (-1, decoder.config.head_dim)).transpose(1, 2)  # heads before positions
            keep(name, rotate(x, angles) if turned else x)

        return see

    def taken(name):
        return lambda module, args: keep(name, args[0])

    def given(name):
        return lambda module, args, out: keep(name, out[0] if isinstance(out, tuple) else out)

    def finish(module, args, kwargs, out):
        hidden = out.last_hidden_state  # [B, S, D]
        if not all_logits:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), last]  # [B, D]
        keep("logits", module.lm_head(hidden))
        for hook in hooks:
            hook.remove()

    hooks = [decoder.register_forward_pre_hook(begin, with_kwargs=True)]
    for i, layer in enumerate(decoder.layers):
        name, attention = f"decoder.layers.{i:02}", layer.self_attn
        if deep:
            hooks += [
                attention.q_proj.register_forward_hook(heads(f"{name}.q", turned=True)),
                attention.k_proj.register_forward_hook(heads(f"{name}.k", turned=True)),
                attention.v_proj.register_forward_hook(heads(f"{name}.v", turned=False)),
                attention.o_proj.register_forward_pre_hook(taken(f"{name}.attended")),
                attention.register_forward_hook(given(f"{name}.attention")),
                layer.mlp.register_forward_hook(given(f"{name}.mlp")),
            ]
        hooks.append(layer.register_forward_hook(given(f"{name}.output")))
    hooks.append(decoder.norm.register_forward_hook(given("decoder.norm")))
    hooks.append(decoder.register_forward_hook(finish, with_kwargs=True))
    return hooks
