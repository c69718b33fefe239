"""The speech decoder: rows of text become codec tokens, one after the other, and those become sound.

    text rows [U, D] -> pre-network (every row sees every other) -> prefill behind bos (the same)
        -> sos -> token -> token -> ... -> eos,      tokens -> vocoder -> waveform [W]

The rows are those of the large decoder's embedding table, so speech needs the words and nothing else of
it; 40 tokens make a second. Layers, rotary positions and cache are the large decoder's own.

Letters: U rows of text or codec tokens, S new positions, D width, V codes and four specials, W samples
of sound. The batch is always one sentence.

Test: ``pytest tests/test_speech.py``
"""

import itertools
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .cache import KVCache
from .decoder import DecoderLayer, RMSNorm, make_embedding, rope_angles
from .files.speech import read_codec_config, read_speech_config
from .masks import SEE_ALL
from .sampling import Sampling, sample
from .voice.vocoder import Vocoder, cut, fold_weight_norm


class SpeechDecoder(nn.Module):
    """Llama-like layers that read rows of text and then say codec tokens.

    Source: upstream's model/vita_tts/decoder/decoder.py; names as in ``decoder/final.pt``.
    """

    def __init__(self, config):
        super().__init__()
        self.config, size = config, config.decoder.hidden_size
        self.embedding = make_embedding(config.decoder.vocab_size, size)
        self.layers_pre_nn = nn.ModuleList(DecoderLayer(config.decoder, i) for i in range(config.num_pre_layers))
        self.layers = nn.ModuleList(DecoderLayer(config.decoder, i) for i in range(config.decoder.num_hidden_layers))
        self.norm = RMSNorm(size, config.decoder.rms_norm_eps)
        self.out_fnn = nn.Linear(size, config.decoder.vocab_size)

    def new_cache(self):
        """An empty cache for one sentence, that grows."""
        c, like = self.config.decoder, self.norm.weight
        shape = (c.num_hidden_layers, 1, c.num_key_value_heads, None, c.head_dim)
        return KVCache(*shape, like.dtype, like.device)

    def through(self, layers, x, cache=None):
        """Layers over positions that all see each other and what is cached; the cache moves on.

        Shapes: [1, S, D] -> [1, S, D], before any final norm.
        """
        past = cache.length if cache is not None else 0
        positions = torch.arange(past, past + x.shape[1], device=x.device)[None]  # [1, S]
        angles = rope_angles(positions, self.config.decoder.head_dim, self.config.decoder.rope_theta)
        for layer in layers:
            x, _ = layer(x, angles, SEE_ALL, cache)
        if cache is not None:
            cache.advance(x.shape[1], None, positions)
        return x

    @torch.no_grad()
    def read(self, rows):
        """The pre-network. Shapes: [1, U, D] -> [1, U, D]."""
        return self.through(self.layers_pre_nn, rows)

    @torch.no_grad()
    def prefill(self, rows, cache):
        """Puts bos and the rows into the cache; gives their hidden states, of which nothing more is needed.

        Shapes: [1, U, D] -> [1, U+1, D].
        """
        bos = torch.full((1, 1), self.config.specials[0], device=rows.device)  # [1, 1]
        x = torch.cat([self.embedding(bos), rows], 1)  # [1, U+1, D]
        return self.through(self.layers, x, cache)  # quirk: bidirectional, and without the final norm

    @torch.no_grad()
    def step(self, token, cache):
        """One token in, logits of the next one out, [1, V] float32."""
        token = torch.full((1, 1), token, device=self.norm.weight.device)  # [1, 1]
        x = self.through(self.layers, self.embedding(token), cache)  # [1, 1, D]
        return self.out_fnn(self.norm(x))[:, 0].float()


def penalised(logits, recent, penalty):
    """Makes tokens less likely that were said of late.

    Shapes: [1, V] -> [1, V]; ``recent`` is a list of ids.
    """
    if not recent:
        return logits
    times = torch.bincount(torch.tensor(recent, device=logits.device), minlength=logits.shape[1])  # [V]
    # quirk: once for each occurrence, sos too, and a negative logit is divided as well, which makes it likelier
    return logits / penalty**times


class Speech(nn.Module):
    """Speech decoder and vocoder."""

    def __init__(self, decoder, codec):
        super().__init__()
        self.decoder, self.codec = SpeechDecoder(decoder), Vocoder(codec)
        if decoder.num_codes > codec.n_codes:
            raise ValueError(f"the decoder says {decoder.num_codes} codes, the codec has only {codec.n_codes}")

    @staticmethod
    def from_pretrained(folder, dtype=torch.float32, device="cpu"):
        """Reads ``decoder/`` and ``codec/``: ``model.json``, and ``final.safetensors`` or ``final.pt``.

        Raises: ValueError where a file is missing, holds more than tensors, or does not fit its model.json.
        """
        folder = Path(folder)
        decoder = read_speech_config(folder / "decoder/model.json")
        codec = read_codec_config(folder / "codec/model.json")
        with torch.device("meta"):
            speech = Speech(decoder, codec)
        prefix = "layers_prefix."  # tuned keys and values that take part only where a prefix is given
        said = {n: t for n, t in read_tensors(folder / "decoder").items() if not n.startswith(prefix)}
        sound = {n: t for n, t in read_tensors(folder / "codec").items() if not n.startswith("encoder.")}
        fill(speech.decoder, said, folder / "decoder", dtype, device)
        fill(speech.codec, fold_weight_norm(sound), folder / "codec", dtype, device)
        return speech.eval()

    @property
    def sample_rate(self):
        """Samples of sound a second."""
        return self.codec.config.sampling_rate

    def rows(self, embeds):
        """Rows of the large decoder's embedding table as rows of this width, a wide one cut into several.

        Shapes: [n, k * D] -> [n * k, D].
        Source: upstream's web_ability_demo.py:407-410; a row of 3584 becomes 4 of 896.
        """
        width, like = self.decoder.config.decoder.hidden_size, self.decoder.norm.weight
        if embeds.dim() != 2 or embeds.shape[1] % width or embeds.numel() == 0:
            raise ValueError(f"embeds must be [n, a multiple of {width}] with n > 0, got {list(embeds.shape)}")
        return embeds.reshape(-1, width).to(like.device, like.dtype)

    def tokens(self, embeds, *, top_k=1, penalty_window=-1, penalty=1.1, max_tokens=1000, generator=None):
        """Says rows of text: codec tokens, one int at a time, the end token left out.

        ``top_k`` 1 takes the likeliest, k draws among the k likeliest, 0 among all. Of the last
        ``penalty_window`` tokens (0 or less: none) each makes its own return less likely by ``penalty``.

        Shapes: embeds [n, D], or rows k times as wide (see `rows`).
        Raises: ValueError where an option or the shape is wrong, before the first token.
        """
        if top_k < 0 or max_tokens < 0 or penalty <= 0:
            raise ValueError(
                f"top_k and max_tokens must be >= 0 and penalty > 0, got {top_k}, {max_tokens} and {penalty}"
            )
        return self._tokens(self.rows(embeds), top_k, penalty_window, penalty, max_tokens, generator)

    def _tokens(self, rows, top_k, penalty_window, penalty, max_tokens, generator):
        bos, sos, eos, pad = self.decoder.config.specials
        cache, said = self.decoder.new_cache(), [sos]
        self.decoder.prefill(self.decoder.read(rows[None]), cache)
        for _ in range(max_tokens):
            logits = self.decoder.step(said[-1], cache)  # [1, V]
            logits[:, [bos, sos, pad]] = -torch.inf  # no codes: upstream's codec would fail on them
            if penalty_window > 0:
                logits = penalised(logits, said[-penalty_window:], penalty)  # [1, V]
            token = int(sample(logits, Sampling(do_sample=top_k != 1, top_k=top_k), [generator]))
            if token == eos:
                return
            said.append(token)
            yield token

    def vocode(self, tokens, voice=None, context=(0, 0)):
        """Sound of codec tokens; ``voice`` is a list of global tokens (default: those of codec/model.json).

        ``context``: tokens at the beginning and at the end that are only looked at (see `Generator`).

        Shapes: tokens [m] long, or a list -> [(m - context) * hop] float32 in -1..1.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.long, device=self.decoder.norm.weight.device)
        return self.codec(tokens[None], voice, context)[0]

    def stream(
        self,
        embeds,
        *,
        chunk=40,
        padding=10,
        window=2401,
        threshold=0.01,
        voice=None,
        top_k=1,
        penalty_window=-1,
        penalty=1.1,
        max_tokens=1000,
        generator=None,
    ):
        """Says rows of text as pieces of sound, each as soon as it is there, cut where it is quiet (see `cut`).

        Put together they are what `vocode` makes of all tokens at once: every chunk of tokens is sounded with
        as many tokens on either side as can touch it, and waits for those. ``padding`` only says how many must
        follow in the end for a chunk to count as one; what is left is the last piece, uncut.

        Shapes: as `tokens`; gives pieces [W] float32.
        Units: chunk and padding in tokens, window in samples, threshold in mean amplitude.
        Raises: ValueError, before the first piece.
        """
        if chunk < 1 or padding < 0 or window < 1:
            raise ValueError(f"chunk and window must be >= 1 and padding >= 0, got {chunk}, {window} and {padding}")
        tokens = self.tokens(
            embeds,
            top_k=top_k,
            penalty_window=penalty_window,
            penalty=penalty,
            max_tokens=max_tokens,
            generator=generator,
        )
        return self._stream(tokens, chunk, padding, window, threshold, voice)

    def _stream(self, tokens, chunk, padding, window, threshold, voice):
        said, done = [], 0  # all tokens, and how many of them have been sounded
        held = self.vocode([], voice)
        for token in itertools.chain(tokens, [None]):  # None: no more will come
            if token is not None:
                said.append(token)
            ahead = padding if token is None else max(padding, self.codec.reach)
            while len(said) >= done + chunk + ahead:
                piece, held = cut(held, self.part(said, done, done + chunk, voice), window, threshold)
                done += chunk
                if piece is not None:
                    yield piece
        if said:
            yield torch.cat([held, self.part(said, done, len(said), voice)])

    def part(self, tokens, start, stop, voice=None):
        """The samples of tokens[start:stop], as they sound among the others. Shapes: [(stop - start) * hop]."""
        first, last = max(0, start - self.codec.reach), min(len(tokens), stop + self.codec.reach)
        return self.vocode(tokens[first:last], voice, (start - first, last - stop))


def read_tensors(folder):
    """The tensors of ``final.safetensors``, or of upstream's ``final.pt``, by name; a nested dict's names are joined.

    Raises: ValueError where neither is there, it is damaged, or the pickle holds more than tensors and plain values.
    """
    file, old = Path(folder) / "final.safetensors", Path(folder) / "final.pt"
    if file.is_file():
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from None
    if not old.is_file():
        raise ValueError(f"{folder} has no final.safetensors and no final.pt")
    try:
        found = torch.load(old, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001, a damaged pickle fails in any way at all
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"its pickle asks for {asked[1]}" if asked else f"it is damaged ({type(error).__name__})"
        raise ValueError(f"{old} is refused: {why}; only a dict of tensors is read") from None
    tensors = dict(flat(found))
    if not tensors:
        raise ValueError(f"{old} is refused: it holds no tensors by name; only a dict of tensors is read")
    return tensors


def flat(found, prefix=""):
    """Name and tensor of every tensor in a dict of dicts; where a dict has a ``model``, that alone."""
    if isinstance(found, torch.Tensor):
        yield prefix, found
    elif isinstance(found, dict) and isinstance(found.get("model"), dict):
        yield from flat(found["model"], prefix)
    elif isinstance(found, dict):
        for name, value in found.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))


def fill(module, tensors, where, dtype, device):
    """Puts tensors into a module that was built on the meta device, strictly: exact names, exact shapes."""
    wanted = {n: tuple(t.shape) for n, t in module.state_dict().items()}
    there = {n: tuple(t.shape) for n, t in tensors.items()}
    faults = {
        "missing": sorted(wanted.keys() - there.keys()),
        "surplus": sorted(there.keys() - wanted.keys()),
        "misshapen": [f"{n} {list(there[n])}, expected {list(s)}" for n, s in wanted.items() if there.get(n, s) != s],
    }
    told = [f"{kind}: {'; '.join(names[:8])}" for kind, names in faults.items() if names]
    if told:
        raise ValueError(f"{where} does not fit its model.json: {'. '.join(told)}")
    module.load_state_dict({n: tensors[n].to(device, dtype) for n in wanted}, assign=True)
    module.requires_grad_(False)
