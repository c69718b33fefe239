"""The ear: the Whale encoder and the adapter that turns its output into positions of the prompt.

    filter bank  [N, T, M]   100 frames a second
    normalise    [N, T, M]   each bin to mean 0 and variance 1 over the training data
    subsample    [N, S, U]   two convolutions, each of which halves time: 25 positions a second
    encode       [N, S, E]   a transformer that looks both ways
    adapt        [N, A, D]   one more convolution that halves time: 12.5 rows a second, as wide as the decoder

N sounds, T frames, M mel bins, S encoder positions, A prompt positions; U channels of the
subsampling, Q bands that it leaves of the bins, E width of the encoder, C = 2 E channels of the
adapter, D width of the decoder; H heads of size K.

No position depends on frames behind the end of its sound, so sounds of different lengths can share
a batch. Nothing here needs memory that grows with the square of the length: an hour of sound,
90,000 encoder positions, goes through in blocks.

Test: ``pytest tests/test_audio.py``
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK = 256  # encoder positions at a time, in the convolutions and as queries in attention
MIN_FRAMES = 7  # what the two convolutions need for one position
ADAPTER_EPS = 1e-3
MASKED = -3e4  # added to a score: below any real one, and still a float16


class AudioOutput(NamedTuple):
    """What sounds become in the prompt: embeds [N, A, D], zeros behind each of lengths [N]."""

    embeds: torch.Tensor
    lengths: torch.Tensor


def audio_token_count(frames):
    """How many prompt positions a sound of so many filter-bank frames takes, an int or a tensor of them.

    Time is halved three times, by ``x[2::2][2::2][0::2]``, and that comes to this:

    >>> audio_token_count(6), audio_token_count(7), audio_token_count(998)  # 998 frames are 10 s
    (0, 1, 124)
    """
    return (frames + 1) // 8


def encoder_position_count(frames):
    """How many encoder positions so many frames take, an int or a tensor of them; at least 3 frames."""
    return (frames - 3) // 4


def sinusoids(length, width, device=None):
    """The table of positions: sines in the even columns, cosines in the odd ones.

    Shapes: -> [S, E] float32
    """
    columns = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    rates = torch.exp(columns * (-math.log(10000.0) / width))
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * rates
    table = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # [S, E]
    return table


def visible_spans(length, chunk_size, left_chunks):
    """Blocks of queries, each with the one span of keys that all of it sees: pairs of slices.

    >>> visible_spans(5, chunk_size=2, left_chunks=1)[-1]  # the chunk of query 4 sees that of 2 and 3 too
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


def read_cmvn(path, is_json):
    """Mean and 1 / standard deviation of each bin, from sums over the training data.

    For whoever compares or converts: a checkpoint carries both as buffers, and those are what the model takes.

    Shapes: -> ([M], [M]) float32
    Raises: ValueError where the file is missing or does not hold such sums.
    Source: ``global_cmvn``: JSON, or Kaldi's text ``[ sums count squares 0 ]``.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if is_json:
            found = json.loads(text)
            sums, squares, count = found["mean_stat"], found["var_stat"], found["frame_num"]
        else:
            numbers = [float(x) for x in text.strip().removeprefix("[").removesuffix("]").split()]
            half = len(numbers) // 2
            sums, count, squares = numbers[: half - 1], numbers[half - 1], numbers[half:-1]
        sums, squares = torch.tensor([sums, squares], dtype=torch.float64)
        mean = sums / count  # [M]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} does not hold cmvn statistics (is_json={is_json}): {error}") from None
    variance = (squares / count - mean.square()).clamp(min=1e-20)  # [M]
    return mean.float(), variance.rsqrt().float()


class AudioEncoder(nn.Module):
    """The Whale encoder and its adapter, from a filter bank to rows as wide as the decoder.

    Source: whale/, checkpoint prefix ``model.audio_encoder.``
    """

    def __init__(self, config, width):
        super().__init__()
        self.config = config
        subsampling = nn.ModuleDict({"core": Subsampling(config)})
        self.encoder = nn.ModuleDict(
            {"global_cmvn": Normaliser(config), "enc": nn.ModuleList([subsampling, Transformer(config)])}
        )
        self.adpter = Adapter(config, width)  # the checkpoint's spelling
        if config.num_prompts:
            self.prompt_embeddings = nn.Embedding(config.num_prompts, width)

    def forward(self, fbank, lengths):
        """Sounds, padded to one length, become the rows that stand for them in the prompt.

        Shapes: [N, T, M] float, [N] frames -> AudioOutput([N, A, D], [N] rows, learned prompts included)
        Raises: ValueError where the shapes do not fit or a sound is too short for one position.
        """
        lengths = torch.as_tensor(lengths, dtype=torch.long)
        self._check(fbank, lengths)
        normal = self.normalise(fbank[:, : int(lengths.max())])  # [N, T, M]
        lengths = lengths.to(fbank.device)
        positions = encoder_position_count(lengths)  # [N]
        hidden = self.encode(self.subsample(normal), positions)  # [N, S, E]
        embeds = self.adapt(hidden, positions)  # [N, A, D]
        counts = audio_token_count(lengths)  # [N]
        embeds = embeds.masked_fill(~_within(counts, embeds.shape[1])[..., None], 0)  # [N, A, D]
        if self.config.num_prompts:
            prompts = self.prompt_embeddings.weight.expand(len(embeds), -1, -1)
            embeds = torch.cat([prompts, embeds], 1)
        return AudioOutput(embeds, counts + self.config.num_prompts)

    def normalise(self, fbank):
        """[N, T, M] -> [N, T, M], in the dtype of the weights."""
        normal = self.encoder["global_cmvn"](fbank)  # [N, T, M]
        return normal.to(self.adpter.conv1d2.weight.dtype)

    def subsample(self, normal):
        """[N, T, M] -> [N, S, U]"""
        return self.encoder["enc"][0]["core"](normal)

    def encode(self, x, lengths):
        """[N, S, U] and [N] encoder positions -> [N, S, E]; rows behind a length mean nothing."""
        return self.encoder["enc"][1](x, lengths)

    def adapt(self, hidden, lengths):
        """[N, S, E] and [N] encoder positions -> [N, A, D]"""
        return self.adpter(hidden, lengths)

    def _check(self, fbank, lengths):
        bins = self.config.num_mel_bins
        if fbank.dim() != 3 or not len(fbank) or fbank.shape[2] != bins:
            raise ValueError(f"fbank must be [sounds, frames, {bins}], got {list(fbank.shape)}")
        if lengths.shape != fbank.shape[:1]:
            raise ValueError(f"lengths must have one entry for each of {len(fbank)} sounds, got {list(lengths.shape)}")
        if int(lengths.min()) < MIN_FRAMES:
            raise ValueError(
                f"a sound of {int(lengths.min())} filter-bank frames is too short: give at least {MIN_FRAMES} "
                f"({self.config.frame_length + (MIN_FRAMES - 1) * self.config.frame_shift:g} ms)"
            )
        if int(lengths.max()) > fbank.shape[1]:
            raise ValueError(f"lengths says {int(lengths.max())} frames, but fbank holds {fbank.shape[1]}")


def _within(lengths, size):
    """[N] -> [N, size] bool: True before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Normaliser(nn.Module):
    """Mean and variance of the training data out of each bin, of padding too."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.num_mel_bins))
        self.register_buffer("istd", torch.ones(config.num_mel_bins))

    def forward(self, fbank):
        return (fbank - self.mean) * self.istd


class Subsampling(nn.Module):
    """Two convolutions without padding, each 3 x 3 at every second frame and bin."""

    def __init__(self, config):
        super().__init__()
        channels = config.subsampling_size
        self.conv = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2), nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2), nn.ReLU()
        )
        bins = encoder_position_count(config.num_mel_bins)  # bins shrink as frames do
        self.out = nn.Sequential(nn.Linear(channels * bins, channels))

    def forward(self, x):
        count = encoder_position_count(x.shape[1])
        starts = range(0, count, BLOCK)  # the first convolution alone widens its input 250 times
        return torch.cat([self._block(x[:, 4 * i : 4 * min(i + BLOCK, count) + 3]) for i in starts], 1)

    def _block(self, x):
        x = self.conv(x[:, None])  # [N, U, S, Q]
        return self.out(x.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """An input layer, positions, and layers that see every position, or whole chunks of them."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.hidden_size
        eps = config.layer_norm_eps
        self.embed = nn.Sequential(nn.Linear(config.subsampling_size, width), nn.LayerNorm(width, eps), nn.ReLU())
        self.encoders = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        if config.normalize_before:
            self.after_norm = nn.LayerNorm(width, eps)

    def forward(self, x, lengths):
        kind, size = self.config.position_encoding, x.shape[1]
        x = self.embed(x)  # [N, S, E]
        table = sinusoids(size, x.shape[2], x.device).to(x.dtype)  # [S, E]
        if kind != "no-enc":
            x = x * math.sqrt(x.shape[2])
        if kind == "abs-enc":
            x = x + table
        bias = MASKED * (~_within(lengths, size)).to(x.dtype)  # [N, S]
        # dynamic_chunks draws chunks at random, which is for training: here a sound has one answer
        spans = visible_spans(size, self.config.chunk_size, self.config.left_chunks)
        for layer in self.encoders:
            x = layer(x, table, bias[:, None], spans)  # [N, S, E]
        return self.after_norm(x) if self.config.normalize_before else x


class Layer(nn.Module):
    """Attention and a feed-forward net, each beside the stream; norms before them or after."""

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.normalize_before = config.normalize_before
        self.concat_after = config.concat_after
        self.self_attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(width, eps)
        self.norm2 = nn.LayerNorm(width, eps)
        if config.concat_after:
            self.concat_linear = nn.Linear(2 * width, width)

    def forward(self, x, table, bias, spans):
        if self.normalize_before:
            x = x + self._attend(self.norm1(x), table, bias, spans)  # [N, S, E]
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, table, bias, spans))  # [N, S, E]
        return self.norm2(x + self.feed_forward(x))

    def _attend(self, x, table, bias, spans):
        heard = self.self_attn(x, table, bias, spans)  # [N, S, E]
        return self.concat_linear(torch.cat([x, heard], -1)) if self.concat_after else heard


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w_2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.w_2(self.w_1(x).relu())


class Attention(nn.Module):
    """Attention whose scores are ((q + u) k + (q + v) p) / sqrt(K), p being the projected position of the key.

    quirk: "rel-enc" is relative in name only. Upstream leaves the shift out, so that p depends on the
    key and not on its distance, and the score comes apart into q (k + p) and a number a key, u k + v p:
    plain attention with other keys and a bias.
    """

    def __init__(self, config):
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.num_heads = heads
        self.has_positions = config.position_encoding == "rel-enc"
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        if self.has_positions:
            self.linear_pos = nn.Linear(width, width, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
            self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x, table, bias, spans):
        """Shapes: [N, S, E], [S, E] positions, [N, 1, S] bias of the keys -> [N, S, E]"""
        q = self._heads(self.linear_q(x))  # [N, H, S, K]
        k = self._heads(self.linear_k(x))  # [N, H, S, K]
        v = self._heads(self.linear_v(x))  # [N, H, S, K]
        if self.has_positions:
            p = self._heads(self.linear_pos(table))  # [H, S, K]
            content = (k @ self.pos_bias_u[..., None]).squeeze(-1)  # [N, H, S]
            position = (p @ self.pos_bias_v[..., None]).squeeze(-1)  # [H, S]
            bias = bias + (content + position) / math.sqrt(q.shape[-1])  # [N, H, S]
            k = k + p  # [N, H, S, K]
        blocks = [
            scaled_dot_product_attention(q[:, :, rows], k[:, :, seen], v[:, :, seen], bias[:, :, None, seen])
            for rows, seen in spans
        ]
        heard = torch.cat(blocks, 2)  # [N, H, S, K]
        return self.linear_out(heard.transpose(1, 2).flatten(2))

    def _heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class Adapter(nn.Module):
    """One convolution at every second position, a norm, and a projection to the decoder's width."""

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
        x = x.masked_fill(~_within(lengths, x.shape[1])[..., None], 0)  # [N, S, E]
        x = pad(x.transpose(1, 2), (0, self.padding))  # quirk: all of the padding is on the right
        x = self.conv1d2(x)  # [N, C, A]
        if isinstance(self.bn2, nn.BatchNorm1d):
            x = self.bn2(x).transpose(1, 2)  # [N, A, C]
        else:
            x = self.bn2(x.transpose(1, 2))  # [N, A, C]
        return self.project(self.act(x))
