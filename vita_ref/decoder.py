"""The Qwen2 decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. READ THIS FILE FIRST.

    embeddings [B, S, D] -> layers -> norm -> hidden states [B, S, D] -> lm_head -> logits [B, S, V]

The decoder does not depend on images or sound: its input is any sequence of rows of width D. Parameters have the names
of the checkpoint, such as ``model.layers.0.self_attn.q_proj.weight``.

B batch rows, S new, T all positions, D width, L layers, H query, G key/value heads, K head size, F MLP, V vocabulary.

Test: ``pytest tests/test_decoder.py``
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .cache import KVCache
from .masks import Mask, all_columns, count_positions, new_columns

QUERY_BLOCK = 512  # queries for each mask: one mask for 16,384 queries would take 256 MB for each row of the batch


class DecoderOutput(NamedTuple):
    """The result of one pass.

    Shapes: last_hidden_state [B, S, D], after the final norm; hidden_states L + 1 of [B, S, D], the input of each
    layer and the last hidden state; attentions L of [B, H, S, T]. The last two are None unless they were requested.
    """

    last_hidden_state: torch.Tensor
    hidden_states: tuple | None
    attentions: tuple | None


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 whatever the dtype of x. Source: Zhang and Sennrich 2019."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        """Shapes: [..., size] -> the same"""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_angles(positions, head_dim, theta, yarn=None):
    """Cosine and sine of the rotation at each position; with a `YarnConfig`, as long texts need them.

    Shapes: positions [B, S] long -> two of [B, 1, S, K/2] float32.
    Source: Su et al. 2021 (RoFormer), section 3.4.2: pair i turns by position * theta^(-2i/K).

    Example: theta = 1e4, head_dim = 4, position 3: the two pairs turn by 3 and by 3 / 100 (in radians).
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)  # [K/2]
    slowness = theta ** (steps / head_dim)  # [K/2], positions per radian
    rates = 1.0 / slowness if yarn is None else yarn_rates(slowness, theta, yarn)  # [K/2]
    angles = positions[:, None, :, None].float() * rates  # [B, 1, S, K/2]
    scale = 1.0 if yarn is None else yarn.attention_scale
    return angles.cos() * scale, angles.sin() * scale


def yarn_rates(slowness, theta, yarn):
    """Radians per position of each pair. Fast pairs keep their rate, slow pairs turn ``factor`` times slower.

    Pair i turns n times in a text of L positions if L = 2 pi n theta^(2i/K), so i = K ln(L / (2 pi n)) / (2 ln theta).
    The pairs with beta_fast and beta_slow turns in the original length are the limits; between them i decides linearly.

    Shapes: slowness [K/2], positions per radian -> [K/2].
    Source: Peng et al. 2023 (YaRN), section 3.2 and 3.3; the authors' code is linear in i, too.
    """
    size, length = 2 * len(slowness), yarn.original_max_position_embeddings
    turns = yarn.beta_fast, yarn.beta_slow
    low, high = (size * math.log(length / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in turns)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if high == low else 0
    pairs = torch.arange(len(slowness), dtype=torch.float32, device=slowness.device)  # [K/2]
    kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)  # [K/2], 1 for fast pairs and 0 for slow ones
    return 1.0 / (yarn.factor * slowness) * (1 - kept) + 1.0 / slowness * kept


def apply_rope(x, angles):
    """Rotates the pairs (i, i + K/2) of every head by the angles of its position (the half-split layout of Llama).

    Shapes: x [B, heads, S, K], queries or keys -> the same.
    """
    cos, sin = angles
    first, second = x.float().chunk(2, -1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)  # [B, heads, S, K]
    return rotated.to(x.dtype)


def fused_attention(q, k, v, mask):
    """Softmax attention by torch's own kernel. H / G query heads share a key/value head, which is not copied for them.

    Shapes: q [B, H, S, K], k and v [B, G, T, K] -> [B, H, S, K].
    """
    b, heads, s, size = q.shape
    groups = k.shape[1]
    if s == 1:  # one query: the heads that share keys become the queries of one head
        q = q.reshape(b, groups, heads // groups, size)  # [B, G, H/G, K]
        out = F.scaled_dot_product_attention(q, k, v, mask.rows(0, 1, q.device))  # [B, G, H/G, K]
        return out.reshape(b, heads, 1, size)
    grouped = heads != groups
    if mask.past == 0 and mask.real is None and mask.allowed is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    blocks = []
    for start in range(0, s, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, s)
        end = k.shape[2] if mask.past is None else mask.past + stop
        allowed = mask.rows(start, stop, q.device)
        block = q[:, :, start:stop], k[:, :, :end], v[:, :, :end]
        blocks.append(F.scaled_dot_product_attention(*block, allowed, enable_gqa=grouped))
    return torch.cat(blocks, 2)


def eager_attention(q, k, v, mask):
    """The same attention written out, with the map that multiplies v. Equal to the fused one within rounding.

    Shapes: q [B, H, S, K], k and v [B, G, T, K] -> [B, H, S, K] and the map [B, H, S, T], whose rows sum to one.
    """
    b, heads, s, size = q.shape
    grouped = q.reshape(b, k.shape[1], -1, size) * size**-0.5  # [B, G, H/G*S, K]; scaled before float16 overflows
    scores = (grouped @ k.mT).reshape(b, heads, s, k.shape[2])  # [B, H, S, T]
    allowed = mask.rows(0, s, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)  # [B, H, S, T]
    weights = scores.float().softmax(-1).to(q.dtype)  # [B, H, S, T]
    out = weights.reshape(b, k.shape[1], -1, k.shape[2]) @ v  # [B, G, H/G*S, K]
    return out.reshape(q.shape), weights


class AttentionCore(nn.Module):
    """Attention without its projections: a module of its own, so that a hook sees the q, k and v that were used."""

    def forward(self, q, k, v, mask, need_weights=False):
        """Shapes: as `eager_attention`; the map is None unless it is requested."""
        return eager_attention(q, k, v, mask) if need_weights else (fused_attention(q, k, v, mask), None)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions. Source: Ainslie et al. 2023 (GQA)."""

    def __init__(self, config, layer):
        super().__init__()
        d, self.head_dim, self.layer = config.hidden_size, config.head_dim, layer
        self.q_proj = nn.Linear(d, config.num_attention_heads * self.head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * self.head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, d, bias=False)
        self.core = AttentionCore()
        norms = [RMSNorm(self.head_dim, config.rms_norm_eps) for _ in range(2 * config.qk_norm)]
        self.q_norm, self.k_norm = norms or (None, None)

    def forward(self, x, angles, mask, cache=None, need_weights=False):
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, H, S, K]
        k = self.k_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, G, S, K]
        v = self.v_proj(x).view(b, s, -1, self.head_dim).transpose(1, 2)  # [B, G, S, K]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, angles), apply_rope(k, angles)
        if cache is not None:
            k, v = cache.write(self.layer, k, v)  # all keys and values so far, [B, G, T, K]
        out, weights = self.core(q, k, v, mask, need_weights)  # [B, H, S, K]
        return self.o_proj(out.transpose(1, 2).flatten(2)), weights


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer 2020."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)  # [B, S, F]
        return self.down_proj(hidden)


class DecoderLayer(nn.Module):
    """Attention, then the MLP. Each has a norm in front and is added to its input."""

    def __init__(self, config, layer):
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, angles, mask, cache=None, need_weights=False):
        attended, weights = self.self_attn(self.input_layernorm(x), angles, mask, cache, need_weights)
        x = x + attended  # [B, S, D]
        x = x + self.mlp(self.post_attention_layernorm(x))  # [B, S, D]
        return x, weights


class TiedHead(nn.Module):
    """Logits from the embedding table, for checkpoints without a head of their own. It owns no parameter."""

    def __init__(self, embed_tokens):
        super().__init__()
        self.shared = (embed_tokens,)  # in a tuple, because a module attribute would be registered a second time

    def forward(self, hidden):
        return F.linear(hidden, self.shared[0].weight)


def make_embedding(rows, width):
    """An `nn.Embedding` with uniform values: on the meta device, torch's normal ones import code for a second."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_(-1, 1), freeze=False)


class Decoder(nn.Module):
    """Token embeddings, layers, final norm and head (``model.*`` and ``lm_head`` in a checkpoint).

    Source: Qwen2 technical report, 2024.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = make_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.tie_word_embeddings:
            self.lm_head = TiedHead(self.embed_tokens)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, inputs_embeds, *, attention_mask=None, position_ids=None, cache=None,
        output_hidden_states=False, output_attentions=False,
    ):  # fmt: skip
        """Embeddings to hidden states. Keys and values are written to the cache; only this function adds to its length.

        Shapes: inputs_embeds [B, S, D]; attention_mask [B, S] bool, False on padding, or [B, T] with a cache, or
        [B, S, S] bool without one: the keys that each query sees; position_ids [B, S] or [1, S] long.
        Raises: ValueError if the shapes do not match, or the cache is too small.
        """
        b, s, _ = inputs_embeds.shape
        self._check(b, s, attention_mask, position_ids, cache)
        if attention_mask is not None and attention_mask.dim() == 3:
            new, mask = None, Mask(allowed=attention_mask[:, None].bool())
        else:
            new = new_columns(attention_mask, b, s, cache)
            mask = Mask(0 if cache is None else cache.length, all_columns(new, b, s, cache))
            if s <= QUERY_BLOCK and (mask.past or mask.real is not None):  # small enough to be made once for all layers
                mask = Mask(allowed=mask.rows(0, s, inputs_embeds.device))
        if position_ids is None:
            start = 0 if cache is None else cache.next_positions
            position_ids = count_positions(new, start, b, s, inputs_embeds.device)  # [B, S]
        c = self.config
        angles = rope_angles(position_ids.expand(b, s), c.head_dim, c.rope_theta, c.rope_scaling)

        x, states, maps = inputs_embeds, [], []
        for layer in self.layers:
            if output_hidden_states:
                states.append(x)
            x, weights = layer(x, angles, mask, cache, output_attentions)
            maps.append(weights)
        x = self.norm(x)  # [B, S, D]
        if cache is not None:
            cache.advance(s, new, position_ids)
        states = (*states, x) if output_hidden_states else None
        return DecoderOutput(x, states, tuple(maps) if output_attentions else None)

    def _check(self, b, s, attention_mask, position_ids, cache):
        if position_ids is not None and position_ids.shape not in ((b, s), (1, s)):
            raise ValueError(f"position_ids must be [{b}, {s}], got {list(position_ids.shape)}")
        if cache is not None and cache.keys.shape[:2] != (len(self.layers), b):
            layers, rows = cache.keys.shape[:2]
            raise ValueError(f"the cache is for layers x rows of {layers} x {rows}, expected {len(self.layers)} x {b}")
        if attention_mask is not None and attention_mask.dim() == 3:
            if cache is not None or position_ids is None:
                raise ValueError("a [B, S, S] attention_mask needs position_ids and takes no cache")
            if attention_mask.shape != (b, s, s):
                raise ValueError(f"attention_mask must be [{b}, {s}, {s}], got {list(attention_mask.shape)}")

    def new_cache(self, batch_size, max_length=None):
        """An empty cache with this decoder's sizes, dtype and device."""
        c, like = self.config, self.norm.weight
        shape = (c.num_hidden_layers, batch_size, c.num_key_value_heads, max_length, c.head_dim)
        return KVCache(*shape, like.dtype, like.device)


def next_token_loss(logits, labels, mask=None):
    """Mean cross-entropy of each position's next token. Labels below zero are not counted.

    Predictions at padding (the column before a left-padded row's first token) and of padding are not counted either.
    Shapes: logits [B, S, V], labels [B, S] long, mask [B, S] bool -> scalar float32.
    """
    predictions = logits[:, :-1].float().flatten(0, 1)  # [B*(S-1), V]
    targets = labels[:, 1:].flatten()  # [B*(S-1)]
    if mask is not None:
        real = mask.bool()  # [B, S]
        targets = targets.masked_fill(~(real[:, :-1] & real[:, 1:]).flatten(), -100)  # [B*(S-1)]
    return F.cross_entropy(predictions, targets.masked_fill(targets < 0, -100))
