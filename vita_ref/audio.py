"""The audio encoder (Whale), and the adapter that turns its output into positions of the prompt.

    filter bank  [N, J, M]   100 frames a second
    normalise    [N, J, M]   each bin to mean 0 and variance 1 over the training data
    subsample    [N, P, C]   two convolutions, each of which halves time: 25 positions a second
    encode       [N, P, E]   a bidirectional transformer
    adapt        [N, A, D]   a convolution that halves time again: 12.5 rows a second, as wide as the decoder

Ten seconds have J = 998 frames, P = 248 positions in the encoder and A = 124 positions in the prompt.

No position depends on frames after the end of its sound, so sounds of different lengths can share a batch. Memory
grows linearly with the length: convolutions and attention work on blocks of positions. An hour has P = 90,000.

N sounds, J frames, M mel bins, C channels, P, A encoder and prompt positions, E, D their widths, H heads, K head size.

Test: ``pytest tests/test_audio.py``
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK = 256  # encoder positions that a convolution makes at once, and queries that attention takes at once
MIN_FRAMES = 7  # the frames that the two convolutions need for one position
ADAPTER_EPS = 1e-3
Count = TypeVar("Count", int, torch.Tensor)
MASKED = -3e4  # added to a masked score: far below any other score, and within the range of float16


def audio_token_count(frames: Count) -> Count:
    """The number of prompt positions A of a sound with J frames, an int or a tensor.

    Upstream slices a mask of the frames by ``[2::2][2::2][0::2]``. This is the length of the result.

    >>> audio_token_count(6), audio_token_count(7), audio_token_count(998)  # 998 frames are 10 s
    (0, 1, 124)
    """
    return (frames + 1) // 8


def encoder_position_count(frames):
    """The number of encoder positions P of a sound with J frames, an int or a tensor of at least 3."""
    return (frames - 3) // 4


class AudioOutput(NamedTuple):
    """The prompt rows of sounds: embeds [N, A, D], zero after the end of a sound, and their lengths [N]."""

    embeds: torch.Tensor
    lengths: torch.Tensor


class AudioEncoder(nn.Module):
    """The Whale encoder and its adapter: from filter banks to rows as wide as the decoder.

    Source: upstream whale/, checkpoint prefix ``model.audio_encoder.``
    """

    def __init__(self, config, width):
        super().__init__()
        self.config = config
        subsampling = nn.ModuleDict({"core": Subsampling(config)})  # these names are the checkpoint's
        self.encoder = nn.ModuleDict(
            {"global_cmvn": Normalisation(config), "enc": nn.ModuleList([subsampling, Transformer(config)])}
        )
        self.adpter = Adapter(config, width)  # the spelling of the checkpoint
        if config.num_prompts:
            self.prompt_embeddings = nn.Embedding(config.num_prompts, width)

    def forward(self, fbank, lengths):
        """The prompt rows of sounds that are padded to one length. Learned prompts, if any, precede each sound.

        Shapes: fbank [N, J, M] float, lengths [N] frames -> AudioOutput([N, A, D], [N] rows)
        Raises: ValueError if the shapes do not match, or a sound is too short for one position.
        """
        lengths = torch.as_tensor(lengths, dtype=torch.long)
        self._check(fbank, lengths)
        normal = self.normalise(fbank[:, : int(lengths.max())])  # [N, J, M]
        lengths = lengths.to(fbank.device)
        positions = encoder_position_count(lengths)  # [N]
        hidden = self.encode(self.subsample(normal), positions)  # [N, P, E]
        embeds = self.adapt(hidden, positions)  # [N, A, D]
        counts = audio_token_count(lengths)  # [N]
        embeds = embeds.masked_fill(~_valid(counts, embeds.shape[1])[..., None], 0)  # [N, A, D]
        if self.config.num_prompts:
            prompts = self.prompt_embeddings.weight.expand(len(embeds), -1, -1)
            embeds = torch.cat([prompts, embeds], 1)
        return AudioOutput(embeds, counts + self.config.num_prompts)

    def normalise(self, fbank):
        """[N, J, M] -> [N, J, M], in the dtype of the weights."""
        normal = self.encoder["global_cmvn"](fbank)  # [N, J, M]
        return normal.to(self.adpter.conv1d2.weight.dtype)  # [N, J, M]

    def subsample(self, normal):
        """[N, J, M] -> [N, P, C]"""
        return self.encoder["enc"][0]["core"](normal)  # [N, P, C]

    def encode(self, x, lengths):
        """[N, P, C] and [N] encoder positions -> [N, P, E]. Rows after a length have no meaning."""
        return self.encoder["enc"][1](x, lengths)  # [N, P, E]

    def adapt(self, hidden, lengths):
        """[N, P, E] and [N] encoder positions -> [N, A, D]"""
        return self.adpter(hidden, lengths)  # [N, A, D]

    def _check(self, fbank, lengths):
        bins = self.config.num_mel_bins
        if fbank.dim() != 3 or not len(fbank) or fbank.shape[2] != bins:
            raise ValueError(f"fbank must be [sounds, frames, {bins}], got {list(fbank.shape)}")
        if lengths.shape != fbank.shape[:1]:
            raise ValueError(f"lengths must be [{len(fbank)}], one for each sound, got {list(lengths.shape)}")
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < MIN_FRAMES:
            least = f"{MIN_FRAMES} ({self.config.frame_length + (MIN_FRAMES - 1) * self.config.frame_shift:g} ms)"
            raise ValueError(f"a sound is too short: its filter bank needs {least} frames, got {shortest}")
        if longest > fbank.shape[1]:
            raise ValueError(f"lengths has a sound of {longest} frames, but fbank has {fbank.shape[1]} frames")


def _valid(lengths, size):
    """[N] -> [N, size] bool: True at the first ``lengths[n]`` places of row n."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Normalisation(nn.Module):
    """(x - mean) / standard deviation of each mel bin, with statistics of the training data. Padding is included."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.num_mel_bins))
        self.register_buffer("istd", torch.ones(config.num_mel_bins))

    def forward(self, fbank):
        return (fbank - self.mean) * self.istd  # [N, J, M]


class Subsampling(nn.Module):
    """Two 3 x 3 convolutions of stride 2 without padding, over frames and bins, and a linear layer."""

    def __init__(self, config):
        super().__init__()
        width = config.subsampling_size
        self.conv = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU()
        )
        bands = encoder_position_count(config.num_mel_bins)  # the convolutions reduce bins as they reduce frames
        self.out = nn.Sequential(nn.Linear(width * bands, width))

    def forward(self, x):
        """Works in blocks, because the output of the first convolution is 250 times as large as its input."""
        count = encoder_position_count(x.shape[1])  # position i depends on the frames 4i to 4i + 6
        starts = range(0, count, BLOCK)
        return torch.cat([self._block(x[:, 4 * i : 4 * min(i + BLOCK, count) + 3]) for i in starts], 1)  # [N, P, C]

    def _block(self, x):
        x = self.conv(x[:, None])  # [N, C, P, bands]
        return self.out(x.transpose(1, 2).flatten(2))  # [N, P, C]


class Transformer(nn.Module):
    """An input layer, sinusoidal positions, and layers of bidirectional attention."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.layer_norm_eps
        self.embed = nn.Sequential(nn.Linear(config.subsampling_size, width), nn.LayerNorm(width, eps), nn.ReLU())
        self.encoders = nn.ModuleList(AudioLayer(config) for _ in range(config.num_hidden_layers))
        if config.normalize_before:
            self.after_norm = nn.LayerNorm(width, eps)

    def forward(self, x, lengths):
        """Shapes: x [N, P, C], lengths [N] positions -> [N, P, E]"""
        kind, size = self.config.position_encoding, x.shape[1]
        x = self.embed(x)  # [N, P, E]
        table = sinusoids(size, x.shape[2], x.device).to(x.dtype)  # [P, E]
        if kind != "no-enc":
            x = x * math.sqrt(x.shape[2])
        if kind == "abs-enc":  # for "rel-enc" the attention uses the table
            x = x + table
        bias = MASKED * (~_valid(lengths, size)).to(x.dtype)  # [N, P]
        # config.dynamic_chunks is ignored: random chunks are for training, and would make answers random
        spans = visible_spans(size, self.config.chunk_size, self.config.left_chunks)
        for layer in self.encoders:
            x = layer(x, table, bias[:, None], spans)  # [N, P, E]
        return self.after_norm(x) if self.config.normalize_before else x  # [N, P, E]


def sinusoids(length, width, device=None):
    """The position table: column 2i is the sine and column 2i + 1 the cosine of position * 10000^(-2i/E).

    Shapes: -> [P, E] float32
    """
    columns = torch.arange(0, width, 2, dtype=torch.float32, device=device)  # [E/2]
    rates = torch.exp(columns * (-math.log(10000.0) / width))  # [E/2]
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * rates  # [P, E/2]
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # [P, E]


def visible_spans(length, chunk_size, left_chunks):
    """Blocks of queries, each with the span of keys that all of its queries see: pairs of slices.

    Without chunks (0 or less) every query sees every key. With chunks, a query sees its own chunk and ``left_chunks``
    chunks before it (all chunks before it if ``left_chunks`` is negative).

    >>> visible_spans(5, chunk_size=2, left_chunks=1)[-1]  # query 4, the third chunk, also sees the second chunk
    (slice(4, 5, None), slice(2, 5, None))
    """
    if chunk_size <= 0:
        return [(slice(i, min(i + BLOCK, length)), slice(0, length)) for i in range(0, length, BLOCK)]
    spans = []
    for start in range(0, length, chunk_size):
        stop = min(start + chunk_size, length)
        first = 0 if left_chunks < 0 else max(0, start - left_chunks * chunk_size)
        spans.append((slice(start, stop), slice(first, stop)))
    return spans


class AudioLayer(nn.Module):
    """Attention and a feed-forward layer, each added to its input. The norms come before them, or after the sums."""

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.normalize_before, self.concat_after = config.normalize_before, config.concat_after
        self.self_attn, self.feed_forward = AudioAttention(config), FeedForward(config)
        self.norm1 = nn.LayerNorm(width, eps)
        self.norm2 = nn.LayerNorm(width, eps)
        if config.concat_after:
            self.concat_linear = nn.Linear(2 * width, width)

    def forward(self, x, table, bias, spans):
        if self.normalize_before:
            x = x + self._attend(self.norm1(x), table, bias, spans)  # [N, P, E]
            return x + self.feed_forward(self.norm2(x))  # [N, P, E]
        x = self.norm1(x + self._attend(x, table, bias, spans))  # [N, P, E]
        return self.norm2(x + self.feed_forward(x))  # [N, P, E]

    def _attend(self, x, table, bias, spans):
        attended = self.self_attn(x, table, bias, spans)  # [N, P, E]
        return self.concat_linear(torch.cat([x, attended], -1)) if self.concat_after else attended  # [N, P, E]


class AudioAttention(nn.Module):
    """Self-attention with the scores ((q + u) k + (q + v) p) / sqrt(K), where p is the projected position of the key.

    This equals q (k + p) / sqrt(K) + (u k + v p) / sqrt(K). The first term is plain attention with the keys k + p. The
    second one does not depend on the query: it is a bias of the key.
    Source: Dai et al. 2019 (Transformer-XL), section 3.3.
    """

    def __init__(self, config):
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_attention_heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.core = AudioAttentionCore()
        self.has_positions = config.position_encoding == "rel-enc"
        if self.has_positions:
            self.linear_pos = nn.Linear(width, width, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(self.num_heads, width // self.num_heads))
            self.pos_bias_v = nn.Parameter(torch.zeros(self.num_heads, width // self.num_heads))

    def forward(self, x, table, bias, spans):
        """Shapes: x [N, P, E], table [P, E], bias [N, 1, P] of the keys -> [N, P, E]"""
        q = self._split(self.linear_q(x))  # [N, H, P, K]
        k = self._split(self.linear_k(x))  # [N, H, P, K]
        v = self._split(self.linear_v(x))  # [N, H, P, K]
        if self.has_positions:
            # quirk: "rel-enc" is not relative: upstream omits the shift, so p depends on the key, not on its distance
            p = self._split(self.linear_pos(table))  # [H, P, K]
            content = (k @ self.pos_bias_u[..., None]).squeeze(-1)  # [N, H, P]
            position = (p @ self.pos_bias_v[..., None]).squeeze(-1)  # [H, P]
            bias = bias + (content + position) / math.sqrt(q.shape[-1])  # [N, H, P]
            k = k + p  # [N, H, P, K]
        out, _ = self.core(q, k, v, bias, spans)
        return self.linear_out(out.transpose(1, 2).flatten(2))  # [N, P, E]

    def _split(self, x):
        """[..., P, E] -> [..., H, P, K]"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class AudioAttentionCore(nn.Module):
    """Attention without its projections: a module of its own, so that hooks see the q, k, v and bias that are used."""

    def forward(self, q, k, v, bias, spans, need_weights=False):
        """Softmax attention in blocks of queries. The weights are None unless they are requested.

        Shapes: q, k and v [N, H, P, K], bias [N, H or 1, P] of the keys, spans as from `visible_spans`
        -> [N, H, P, K] and the weights [N, H, P, P], whose rows sum to one.
        """
        if need_weights:
            return self._eager(q, k, v, bias, spans)
        blocks = [
            scaled_dot_product_attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], bias[:, :, None, keys])
            for queries, keys in spans
        ]
        return torch.cat(blocks, 2), None

    def _eager(self, q, k, v, bias, spans):
        """The same attention written out, with the weights. Its memory grows with the square of the length."""
        size = q.shape[2]
        visible = torch.zeros(size, size, dtype=torch.bool, device=q.device)  # [P, P]
        for queries, keys in spans:
            visible[queries, keys] = True
        scores = (q * q.shape[-1] ** -0.5) @ k.mT + bias[:, :, None]  # [N, H, P, P]
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)  # [N, H, P, P]
        weights = scores.float().softmax(-1).to(q.dtype)  # [N, H, P, P]
        return weights @ v, weights


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config):
        super().__init__()
        self.w_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w_2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.w_2(self.w_1(x).relu())  # [N, P, E]


class Adapter(nn.Module):
    """A convolution of stride 2 over positions, a norm, and a projection to the width of the decoder."""

    def __init__(self, config, width):
        super().__init__()
        channels = 2 * config.hidden_size
        self.padding = config.adapter_kernel_size - 1
        self.conv1d2 = nn.Conv1d(config.hidden_size, channels, config.adapter_kernel_size, stride=2)
        norm = nn.BatchNorm1d if config.adapter_norm == "batch" else nn.LayerNorm
        self.bn2 = norm(channels, eps=ADAPTER_EPS)
        self.act = nn.ReLU() if config.adapter_activation == "relu" else nn.GELU()
        self.project = nn.Linear(channels, width)

    def forward(self, x, lengths):
        """Shapes: x [N, P, E], lengths [N] positions -> [N, A, D]"""
        x = x.masked_fill(~_valid(lengths, x.shape[1])[..., None], 0)  # [N, P, E]
        x = pad(x.mT, (0, self.padding))  # quirk: all padding is on the right, as in upstream
        x = self.conv1d2(x)  # [N, 2*E, A]
        x = self.bn2(x).mT if isinstance(self.bn2, nn.BatchNorm1d) else self.bn2(x.mT)  # [N, A, 2*E]
        return self.project(self.act(x))  # [N, A, D]
