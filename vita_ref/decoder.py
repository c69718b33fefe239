"""The Qwen2 decoder by hand: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Read this file first.

    embeddings [B, S, D] -> layers -> norm -> logits [B, S, V]

It knows nothing of images or sound: whatever has width D may come in. A layer's module has the
checkpoint's names (``model.layers.0.self_attn.q_proj.weight`` and so on).

Letters: B batch, S new positions, T cached and new ones, D model width, H query heads, G key/value
heads, K head size, F MLP width, V vocabulary, L layers.

Test: ``pytest tests/test_decoder.py``
"""

import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .cache import KVCache
from .scale.products import Linear, linear


class Mask(NamedTuple):
    """Which keys a query may see: those up to itself that are real, or all, or what ``allowed`` says.

        past 2, new 2, all real:   1 1 1 0
                                   1 1 1 1

    A padding column sees itself too, so that no row of the softmax is empty; nothing else sees padding.
    """

    past: int | None = None  # columns before the first query; None: no order, every query sees every key
    real: torch.Tensor | None = None  # which columns are no padding, [B, T] bool; None: all
    allowed: torch.Tensor | None = None  # in the place of both, [B, 1, S, T] bool

    def rows(self, start, stop, device=None):
        """What the queries from ``start`` up to ``stop`` see: [B or 1, 1, n, T] bool, T ending with the last; None: all."""
        if self.allowed is not None:
            return self.allowed[:, :, start:stop]
        if self.past is None or self.real is None and stop - start == 1:
            return None
        columns = torch.arange(self.past + stop, device=device)  # [T]
        queries = columns[self.past + start :, None]  # [S, 1]
        if self.real is None:
            return (columns <= queries)[None, None]
        allowed = (columns <= queries) & self.real[:, None, : len(columns)] | (columns == queries)  # [B, S, T]
        return allowed[:, None]


SEE_ALL = Mask()
QUERIES = 512  # a mask is made for so many queries at a time: for 16,384 at once it would be 256 MB a row of the batch


class DecoderOutput(NamedTuple):
    """What a pass gives: the last hidden states [B, S, D] after the final norm, and what else was asked for.

    ``hidden_states`` are L + 1 of [B, S, D]: what goes into each layer, then the last ones behind the norm;
    ``attentions`` are L of [B, H, S, T].
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple | None
    attentions: tuple | None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 whatever comes in. Source: Zhang and Sennrich 2019."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        wide = x.float()  # [B, S, D]
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)  # [B, S, D]
        return self.weight * wide.to(x.dtype)


def rope_angles(positions, head_dim, theta):
    """Cosine and sine of every position's rotation: a function of positions alone.

    Shapes: positions [B, S] long -> two of [B, 1, S, K/2] float32.
    Source: Su et al. 2021 (RoFormer), section 3.4.2; frequencies theta^(-2i/K), rounded as transformers rounds them.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)  # [K/2]
    angles = positions[:, None, :, None].float() * (1.0 / theta ** (steps / head_dim))  # [B, 1, S, K/2]
    return angles.cos(), angles.sin()


def rotate(x, angles):
    """Turns the pairs (i, i + K/2) of every head by its position's angles (half-split, as Qwen2 and Llama do).

    Shapes: x [B, heads, S, K], of queries or of keys -> the same.
    """
    cos, sin = angles
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)  # [B, heads, S, K]
    return turned.to(x.dtype)


def attend(q, k, v, mask):
    """Softmax attention in which H / G query heads share a key/value head, without copying keys and values.

    Shapes: q [B, H, S, K], k and v [B, G, T, K] -> [B, H, S, K].
    """
    heads, groups = q.shape[1], k.shape[1]
    b, s, grouped = len(q), q.shape[2], heads != groups
    if s == 1:  # one query: the heads that share keys stand in the place of positions
        q = q.reshape(b, groups, heads // groups, q.shape[3])  # [B, G, H/G, K]
        out = F.scaled_dot_product_attention(q, k, v, mask.rows(0, 1, q.device))  # [B, G, H/G, K]
        return out.reshape(b, heads, 1, out.shape[3])
    if mask.past == 0 and mask.real is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    parts = []
    for start in range(0, s, QUERIES):
        stop = min(start + QUERIES, s)
        end = k.shape[2] if mask.past is None else mask.past + stop
        few, allowed = q[:, :, start:stop], mask.rows(start, stop, q.device)
        parts.append(F.scaled_dot_product_attention(few, k[:, :, :end], v[:, :, :end], allowed, enable_gqa=grouped))
    return torch.cat(parts, 2)


def attention_weights(q, k, mask):
    """The same attention's map, for those who ask to see it.

    Shapes: q [B, H, S, K], k [B, G, T, K] -> [B, H, S, T], rows summing to one.
    """
    b, heads, s, size = q.shape
    grouped = q.reshape(b, k.shape[1], -1, size) * size**-0.5  # [B, G, H/G*S, K]; scaled before float16 overflows
    scores = (grouped @ k.mT).reshape(b, heads, s, k.shape[2])  # [B, H, S, T]
    allowed = mask.rows(0, s, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)  # [B, H, S, T]
    return scores.float().softmax(-1).to(q.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions. Source: Ainslie et al. 2023 (GQA)."""

    def __init__(self, config):
        super().__init__()
        d, size = config.hidden_size, config.head_dim
        self.head_dim = size
        self.q_proj = Linear(d, config.num_attention_heads * size, bias=config.attention_bias)
        self.k_proj = Linear(d, config.num_key_value_heads * size, bias=config.attention_bias)
        self.v_proj = Linear(d, config.num_key_value_heads * size, bias=config.attention_bias)
        self.o_proj = Linear(config.num_attention_heads * size, d, bias=False)

    def forward(self, x, angles, mask, store=None, want_weights=False):
        """``store(k, v)`` puts new keys and values behind the cached ones and gives them all."""
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, H, S, K]
        k = self.k_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, G, S, K]
        v = self.v_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, G, S, K]
        q, k = rotate(q, angles), rotate(k, angles)
        if store is not None:
            k, v = store(k, v)
        weights = None
        if want_weights:
            weights = attention_weights(q, k, mask)  # [B, H, S, T]
            grouped = weights.reshape(b, k.shape[1], -1, k.shape[2])  # [B, G, H/G*S, T]
            out = (grouped @ v).reshape(q.shape)  # [B, H, S, K]
        else:
            out = attend(q, k, v, mask)  # [B, H, S, K]
        return self.o_proj(out.transpose(1, 2).flatten(2)), weights


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer 2020."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)  # [B, S, F]
        return self.down_proj(hidden)


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind a norm and added to what came in."""

    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, angles, mask, store=None, want_weights=False):
        mixed, weights = self.self_attn(self.input_layernorm(x), angles, mask, store, want_weights)
        x = x + mixed  # [B, S, D]
        x = x + self.mlp(self.post_attention_layernorm(x))  # [B, S, D]
        return x, weights


def embedding(rows, width):
    """An `nn.Embedding`, begun evenly: its own normal draw takes a second of imports on the meta device."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_(-1, 1), freeze=False)


def new_columns(attention_mask, b, s, cache):
    """Which of the ``s`` new columns are real, [B, S] bool, or None where all are."""
    if attention_mask is None:
        return None
    past = cache.length if cache is not None else 0
    if attention_mask.shape not in ((b, s), (b, past + s)):
        raise ValueError(f"attention_mask must be [{b}, {s}] or [{b}, {past + s}], got {list(attention_mask.shape)}")
    attention_mask = attention_mask.bool()  # [B, T]
    new = attention_mask[:, attention_mask.shape[1] - s :]  # [B, S]
    if attention_mask.is_meta:
        return new
    if attention_mask.shape[1] > s and not attention_mask[:, :past].equal(cache.mask):
        raise ValueError("attention_mask differs from what the cache holds in the columns that are cached already")
    return None if attention_mask.all() else new


def known_columns(new, b, s, cache):
    """Which of the cached and new columns are real, [B, T] bool, or None where all are."""
    if cache is None or cache.length == 0:
        return new
    if new is None and not cache.padded:
        return None
    return torch.cat([cache.mask, new if new is not None else cache.mask.new_ones(b, s)], 1)


def count_positions(new, start, b, s, device):
    """Position ids that count the real columns on from ``start`` ([B] or 0), 0 on padding: [B, S] long."""
    if new is None:
        return (torch.arange(s, device=device) + torch.as_tensor(start, device=device).view(-1, 1)).expand(b, s)
    counted = new.long().cumsum(1) - 1 + torch.as_tensor(start, device=device).view(-1, 1)  # [B, S]
    return counted * new


class Decoder(nn.Module):
    """The whole decoder: token embeddings, layers, final norm and head (``model.*`` and ``lm_head`` in a checkpoint).

    Source: Qwen2 technical report, 2024.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        inputs_embeds,
        *,
        attention_mask=None,
        position_ids=None,
        cache=None,
        output_hidden_states=False,
        output_attentions=False,
    ):
        """Embeddings to hidden states; keys and values go to the cache, which moves on at the end.

        Shapes: inputs_embeds [B, S, D]; attention_mask [B, S] bool, False on padding (with a cache
        it may cover the cached columns too), or without a cache [B, S, S] bool: which keys each
        query sees, for packed rows; position_ids [B, S] or [1, S] long.
        Raises: ValueError where the shapes do not fit, or the cache is too small.
        """
        b, s, _ = inputs_embeds.shape
        if position_ids is not None and position_ids.shape not in ((b, s), (1, s)):
            raise ValueError(f"position_ids must be [{b}, {s}], got {list(position_ids.shape)}")
        if cache is not None and cache.keys.shape[:2] != (len(self.layers), b):
            layers, rows = cache.keys.shape[:2]
            raise ValueError(
                f"the cache is one of {layers} layers and {rows} rows, expected {len(self.layers)} layers and {b} rows"
            )
        if attention_mask is not None and attention_mask.dim() == 3:
            if cache is not None or position_ids is None:
                raise ValueError("a [B, S, S] attention_mask needs position_ids and takes no cache")
            if attention_mask.shape != (b, s, s):
                raise ValueError(f"attention_mask must be [{b}, {s}, {s}], got {list(attention_mask.shape)}")
            new, mask = None, Mask(allowed=attention_mask[:, None].bool())
        else:
            new = new_columns(attention_mask, b, s, cache)
            past = cache.length if cache is not None else 0
            mask = Mask(past, known_columns(new, b, s, cache))
            if s <= QUERIES and (past or mask.real is not None):  # small: made once for all layers
                mask = Mask(allowed=mask.rows(0, s, inputs_embeds.device))
        if position_ids is None:
            start = cache.next_positions if cache is not None else 0
            position_ids = count_positions(new, start, b, s, inputs_embeds.device)  # [B, S]
        angles = rope_angles(position_ids.expand(b, s), self.config.head_dim, self.config.rope_theta)

        x, states, maps = inputs_embeds, [], []
        for i, layer in enumerate(self.layers):
            if output_hidden_states:
                states.append(x)
            store = None if cache is None else functools.partial(cache.write, i)
            x, weights = layer(x, angles, mask, store, output_attentions)
            maps.append(weights)
        x = self.norm(x)  # [B, S, D]
        if cache is not None:
            cache.advance(s, new, position_ids)
        return DecoderOutput(
            x,
            (*states, x) if output_hidden_states else None,
            tuple(maps) if output_attentions else None,
        )

    def logits(self, hidden):
        """The head alone. Shapes: [..., D] -> [..., V]."""
        return linear(hidden, self.embed_tokens.weight) if self.config.tie_word_embeddings else self.lm_head(hidden)

    def new_cache(self, batch_size, max_length=None):
        """An empty cache of this decoder's sizes, on its device and in its dtype."""
        c, like = self.config, self.norm.weight
        shape = (c.num_hidden_layers, batch_size, c.num_key_value_heads, max_length, c.head_dim)
        return KVCache(*shape, like.dtype, like.device)


def next_token_loss(logits, labels, mask=None):
    """Mean cross-entropy of each position's successor; labels below zero are not counted.

    Nor is a guess made on padding, such as that of a left-padded row's first token, nor one of padding.
    Shapes: logits [B, S, V], labels [B, S] long, mask [B, S] bool -> scalar float32.
    """
    guesses = logits[:, :-1].float().flatten(0, 1)  # [B*(S-1), V]
    targets = labels[:, 1:].flatten()  # [B*(S-1)]
    if mask is not None:
        real = mask.bool()  # [B, S]
        targets = targets.masked_fill(~(real[:, :-1] & real[:, 1:]).flatten(), -100)  # [B*(S-1)]
    return F.cross_entropy(guesses, targets.masked_fill(targets < 0, -100))
