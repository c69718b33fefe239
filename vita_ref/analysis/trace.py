"""Every intermediate of a request by name, as the model used it: a reference for ports of VITA.

    with trace(vita) as record:
        vita.respond("What is this?", images=["cat.jpg"])
    record["vision.0.layers.03"]  # [N, P, E], the output of the vision tower's fourth layer

Hooks copy the inputs and outputs of modules while they run. Only values with names in `derived.` are computed a second
time. The names, in the order of computation (`tools/dump.py` adds the first and the last):

    token_ids                            [B, n] long      the prompt, a negative id for each image or sound
    vision.0.tiles                       [N, 3, Y, X]     pixel values
    vision.0.embeddings                  [N, P, E]        patches and class token with their positions
    vision.0.layers.00.norm1             [N, P, E]        deep: the norm in front of attention
    vision.0.layers.00.q, .k, .v         [N, H, P, K]     deep: what enters attention
    vision.0.layers.00.attended          [N, P, E]        deep: all heads, before the output projection
    vision.0.layers.00.attention         [N, P, E]        deep: after the output projection
    vision.0.layers.00.norm2             [N, P, E]        deep: the norm in front of the MLP
    vision.0.layers.00.hidden            [N, P, F]        deep: inside the MLP, after the activation
    vision.0.layers.00.mlp               [N, P, E]        deep: the output of the MLP, before it is scaled and added
    vision.0.layers.00                   [N, P, E]        the output of each layer
    vision.0.tower                       [N, I, factor*factor*E]    scaled and shuffled
    vision.0.projector                   [N, I, D]
    audio.0.fbank                        [J, M]
    audio.0.normalised                   [J, M]
    audio.0.subsampled                   [P, C]
    audio.0.input                        [P, E]           after the input layer, before scale and positions
    audio.0.layers.00.norm1              [P, E]           deep: the norm of attention
    audio.0.layers.00.q, .k, .v          [H, P, K]        deep: what enters attention; k contains the positions
    audio.0.layers.00.bias               [1 or H, P]      deep: what is added to the scores of each key
    audio.0.layers.00.attended           [P, E]           deep: all heads, before the output projection
    audio.0.layers.00.attention          [P, E]           deep: after the output projection
    audio.0.layers.00.norm2              [P, E]           deep: the norm of the feed-forward layers
    audio.0.layers.00.hidden             [P, F]           deep: between the feed-forward layers, after the ReLU
    audio.0.layers.00.mlp                [P, E]           deep: the output of the feed-forward layers
    audio.0.layers.00                    [P, E]           the output of each layer
    audio.0.encoder                      [P, E]           the output of the last layer, after the final norm if any
    audio.0.adapter.activation           [A, 2*E]         deep: after the convolution, the norm and the activation
    audio.0.adapter                      [A, D]           without learned prompt rows
    spliced.inputs_embeds                [B, S, D]        what enters the decoder
    spliced.attention_mask               [B, S] bool      which columns are not padding
    spliced.position_ids                 [B, S] long
    decoder.rope.cos, decoder.rope.sin   [B, 1, S, K/2]   the rotation of queries and keys
    decoder.mask                         [B or 1, 1, S, T] bool   deep or maps: the keys that each query sees
    decoder.layers.00.q                  [B, H, S, K]     deep: queries as they enter attention, rotated
    decoder.layers.00.k, .v              [B, G, T, K]     deep: keys and values as they enter attention, cached ones too
    decoder.layers.00.attention_map      [B, H, S, T]     maps: the weights that multiply v
    decoder.layers.00.attended           [B, S, H*K]      deep: all heads, before the output projection
    decoder.layers.00.attention          [B, S, D]        deep: after the output projection
    decoder.layers.00.mlp                [B, S, D]        deep
    decoder.layers.00.output             [B, S, D]        the output of each layer
    decoder.norm                         [B, S, D]
    logits                               [B, V]           what the first token is chosen from, without penalties
    derived.all_logits                   [B, S, V]        all_logits: the head applied to every position
    tokens                               [B, new] long    the first new tokens, the likeliest ones

`vision.0` is the first pass through the vision tower, which takes all tiles together unless images differ in size;
`audio.0` is the first sound, without padding. Of the decoder only the first pass is recorded, the one over the prompt.
`Vita.forward` computes the logits of all positions: `logits` is then the last real position of each row or, with
all_logits, all of them, [B, S, V]. The attention mask and the position ids are those that the cache recorded; in a
pass without a cache, those that were given. Tensors keep the dtype that they were computed in.

The shape letters are those of vision.py, audio.py and decoder.py; n ids of the prompt.

Test: ``pytest tests/analysis/test_trace.py``
"""

from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from ..audio import audio_token_count, encoder_position_count


@contextmanager
def trace(vita, *, deep=False, maps=False, all_logits=False):
    """Yields a dict that is filled while the model runs: name -> copy on the CPU, in the order of computation.

    Generation takes plain products and reads the prompt in one pass meanwhile, as `Vita.forward` does. ``deep`` also records the intermediates of each layer. ``maps`` also records the attention maps of the decoder, and
    selects the eager path for it; its logits equal those of the fused path within rounding.
    ``all_logits`` also records the logits of every position.
    """
    record, usual = {}, (vita.generation_products, vita.prompt_chunk)
    vita.generation_products, vita.prompt_chunk = nullcontext, None

    def save(name, tensor):
        record[name] = tensor.detach().to("cpu", copy=True).contiguous()

    handles = DecoderHooks(vita.decoder, record, save, deep=deep, maps=maps, all_logits=all_logits).handles
    try:
        if vita.vision is not None:
            handles += vision_hooks(vita.vision, vita.projector, save, deep)
        if vita.audio is not None:
            handles += audio_hooks(vita.audio, save, deep)
        yield record
    finally:
        vita.generation_products, vita.prompt_chunk = usual
        for handle in handles:
            handle.remove()
        for name in [name for name, tensor in record.items() if tensor is None]:  # placeholders of a pass that failed
            del record[name]


# ---- hooks


def save_inputs(module, save, *names):
    """Saves the arguments of a module as they enter it. There may be fewer arguments than names."""

    def hook(module, args):
        for name, tensor in zip(names, args):
            save(name, tensor)

    return module.register_forward_pre_hook(hook)


def save_output(module, save, name):
    """Saves the output of a module, or the first of several."""

    def hook(module, args, out):
        save(name, out[0] if isinstance(out, tuple) else out)

    return module.register_forward_hook(hook)


def vision_hooks(tower, projector, save, deep):
    """Records each pass through the vision tower under a number of its own."""
    number = -1

    def numbered(part, tensor):
        save(f"vision.{number}.{part}", tensor)

    def begin(module, args):
        nonlocal number
        number += 1
        numbered("tiles", args[0])

    handles = [tower.register_forward_pre_hook(begin), save_output(tower.embeddings, numbered, "embeddings")]
    for i, layer in enumerate(tower.encoder.layers):
        name = f"layers.{i:02}"
        if deep:
            handles += tower_layer_hooks(numbered, name, layer, layer.attn, layer.attn.proj, layer.mlp, layer.mlp.fc2)
        handles.append(save_output(layer, numbered, name))
    return [*handles, save_output(tower, numbered, "tower"), save_output(projector, numbered, "projector")]


def audio_hooks(encoder, save, deep):
    """Records each pass through the audio encoder. Every sound has a number, and its padding is left out."""
    first, lengths = 0, []  # the number of the first sound of this pass; the frames of each

    def numbered(part, batch, rows=encoder_position_count):
        axis = -1 if part.endswith(".bias") else -2
        for i, frames in enumerate(lengths):
            save(f"audio.{first + i}.{part}", batch[i].narrow(axis, 0, rows(frames)))

    def begin(module, args):
        nonlocal first, lengths
        fbank, frames = args
        first, lengths = first + len(lengths), torch.as_tensor(frames).tolist()
        numbered("fbank", fbank, int)

    subsampling, transformer = encoder.encoder["enc"]
    handles = [
        encoder.register_forward_pre_hook(begin),
        save_output(encoder.encoder["global_cmvn"], partial(numbered, rows=int), "normalised"),
        save_output(subsampling["core"], numbered, "subsampled"),
        save_output(transformer.embed, numbered, "input"),
    ]
    for i, layer in enumerate(transformer.encoders):
        name, attention = f"layers.{i:02}", layer.self_attn
        if deep:
            mlp = layer.feed_forward
            handles += tower_layer_hooks(numbered, name, layer, attention, attention.linear_out, mlp, mlp.w_2)
        handles.append(save_output(layer, numbered, name))
    handles.append(save_output(transformer, numbered, "encoder"))
    adapted = partial(numbered, rows=audio_token_count)
    if deep:
        handles.append(save_output(encoder.adpter.act, adapted, "adapter.activation"))
    return [*handles, save_output(encoder.adpter, adapted, "adapter")]


def tower_layer_hooks(save, name, layer, attention, projection, mlp, second):
    """The intermediates of one layer of the vision tower or the audio encoder; ``second`` is the MLP's last matrix."""
    core = getattr(attention, "core", None)
    parts = [f"{name}.{part}" for part in ("q", "k", "v", "bias")]
    return [
        save_output(layer.norm1, save, f"{name}.norm1"),
        *([save_inputs(core, save, *parts)] if core is not None else []),
        save_inputs(projection, save, f"{name}.attended"),
        save_output(attention, save, f"{name}.attention"),
        save_output(layer.norm2, save, f"{name}.norm2"),
        save_inputs(second, save, f"{name}.hidden"),
        save_output(mlp, save, f"{name}.mlp"),
    ]


class DecoderHooks:
    """Records the first pass of the decoder and the logits that follow it, then removes its hooks.

    Attributes:
        handles: those of all hooks.
    """

    def __init__(self, decoder, record, save, *, deep, maps, all_logits):
        self.record, self.save, self.deep, self.maps, self.all_logits = record, save, deep, maps, all_logits
        self.past = 0  # columns that were in the cache before the pass
        self.hidden = None  # after the final norm, [B, S, D], once the pass is over
        self.handles = [decoder.register_forward_pre_hook(self.begin, with_kwargs=True)]
        self.handles.append(decoder.layers[0].register_forward_pre_hook(self.enter_layers))
        for i, layer in enumerate(decoder.layers):
            self.handles += self.layer_hooks(f"decoder.layers.{i:02}", layer)
        self.handles.append(save_output(decoder.norm, save, "decoder.norm"))
        self.handles.append(decoder.register_forward_hook(self.end, with_kwargs=True))
        self.handles.append(decoder.lm_head.register_forward_hook(self.logits))

    def layer_hooks(self, name, layer):
        """One layer, in the order in which its hooks run."""
        attention, save, handles = layer.self_attn, self.save, []
        if self.deep:
            handles.append(save_inputs(attention.core, save, f"{name}.q", f"{name}.k", f"{name}.v"))
        if self.maps:
            handles.append(attention.core.register_forward_pre_hook(select_eager, with_kwargs=True))
            handles.append(
                attention.core.register_forward_hook(lambda core, args, out: save(f"{name}.attention_map", out[1]))
            )
        if self.deep:
            handles.append(save_inputs(attention.o_proj, save, f"{name}.attended"))
            handles.append(save_output(attention, save, f"{name}.attention"))
            handles.append(save_output(layer.mlp, save, f"{name}.mlp"))
        return [*handles, save_output(layer, save, f"{name}.output")]

    def begin(self, decoder, args, kwargs):
        """The arguments of the pass. With a cache, `end` fills in the mask and the position ids."""
        if self.hidden is not None:  # a second pass, and the first one had no logits
            self.remove()
            return
        cache, embeds = kwargs.get("cache"), args[0] if args else kwargs["inputs_embeds"]
        self.save("spliced.inputs_embeds", embeds)
        self.past = 0 if cache is None else cache.length
        for name in ("attention_mask", "position_ids"):
            if cache is not None:
                self.record[f"spliced.{name}"] = None  # a placeholder, which keeps the order of names
            elif (given := kwargs.get(name)) is not None:
                given = given.bool() if name == "attention_mask" else given.expand(embeds.shape[:2])
                self.save(f"spliced.{name}", given)

    def enter_layers(self, layer, args):
        """Angles and mask as the first layer gets them. All layers get the same objects."""
        x, (cos, sin), mask = args[:3]
        self.save("decoder.rope.cos", cos)
        self.save("decoder.rope.sin", sin)
        if self.deep or self.maps:
            s = x.shape[1]
            visible = mask.rows(0, s, x.device)
            all_keys = x.new_ones(1, 1, s, self.past + s, dtype=torch.bool)
            self.save("decoder.mask", all_keys if visible is None else visible)

    def end(self, decoder, args, kwargs, out):
        self.hidden, cache = out.last_hidden_state, kwargs.get("cache")
        if cache is not None:
            self.save("spliced.attention_mask", cache.mask[:, self.past :])
            self.save("spliced.position_ids", cache.positions[:, self.past : cache.length])

    def logits(self, head, args, out):
        """The first logits after the pass: of one position in each row, or of all of them."""
        if self.hidden is None:
            return
        self.remove()
        whole = out.dim() == 3 and out.shape[1] == self.hidden.shape[1]
        if out.dim() == 3 and not (whole and self.all_logits):
            last = self.last_columns().clamp(max=out.shape[1] - 1)  # [B]
            out = out[torch.arange(len(out)), last]  # [B, V]
        self.save("logits", out)
        if self.all_logits and not whole:
            self.save("derived.all_logits", head(self.hidden))

    def last_columns(self):
        """The last column of each row that is not padding. Shapes: [B] long."""
        rows, s = self.hidden.shape[:2]
        real = self.record.get("spliced.attention_mask")
        if real is None or real.dim() != 2:
            return torch.full((rows,), s - 1)
        return (real * torch.arange(1, s + 1)).argmax(1)

    def remove(self):
        for handle in self.handles:
            handle.remove()


def select_eager(core, args, kwargs):
    """Makes attention return its map."""
    return args[:4], {"need_weights": True}
