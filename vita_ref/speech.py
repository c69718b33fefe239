"""Speech: from rows of text to codec tokens to sound, as a whole or as a stream.

    text rows [U, D] -> speech decoder: token, token, ..., end token -> vocoder -> waveform [W]
    as a stream: tokens -> chunks of 40 -> vocoder, with neighbouring tokens as context -> split at a quiet sample

The rows are rows of the language model's embedding table. Speech needs the text, but no hidden state of that model.
40 tokens are one second of sound. The networks are in ``voice/``.

U rows of text or codec tokens, D width of the speech decoder, V its vocabulary, W samples of sound.
The batch is always one sentence.

Test: ``pytest tests/test_speech.py``
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .files.speech import (
    fill_module,
    read_codec_config,
    read_speech_config,
    read_tensors,
)
from .sampling import Sampling, sample
from .voice.decoder import SpeechDecoder, apply_penalty
from .voice.vocoder import Vocoder, fold_weight_norm, split_quiet


@dataclass(frozen=True)
class TokenOptions:
    """How codec tokens are chosen.

    Attributes:
        top_k: 1 takes the likeliest token, k draws among the k likeliest, 0 draws among all.
        penalty_window: how many of the last tokens are penalised; 0 or less penalises none.
        penalty: what the logits of these tokens are divided by.
        max_tokens: the maximum number of tokens of a sentence.
    """

    top_k: int = 1
    penalty_window: int = -1
    penalty: float = 1.1
    max_tokens: int = 1000

    def check(self):
        """Returns the options unchanged. Raises: ValueError with the option, its range and the value."""
        for name in ("top_k", "max_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.penalty <= 0:
            raise ValueError(f"penalty must be above 0, got {self.penalty}")
        return self

    @property
    def sampling(self):
        """These options as `Sampling`, for `sample`."""
        return Sampling(do_sample=self.top_k != 1, top_k=self.top_k)


class Speech(nn.Module):
    """The speech decoder and the vocoder of one checkpoint."""

    def __init__(self, decoder, codec):
        super().__init__()
        self.decoder, self.codec = SpeechDecoder(decoder), Vocoder(codec)
        if decoder.num_codes > codec.n_codes:
            raise ValueError(
                f"the speech decoder has {decoder.num_codes} codes, but the codec has only {codec.n_codes}"
            )

    @staticmethod
    def from_pretrained(
        folder: str | os.PathLike, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
        check_finite: bool = False,
    ) -> "Speech":  # fmt: skip
        """Reads ``decoder/`` and ``codec/``, each with ``model.json`` and ``final.safetensors`` or ``final.pt``.

        Raises: ValueError if a file is missing, damaged, contains more than tensors, or does not match its model.json.
        """
        decoder_folder, codec_folder = Path(folder) / "decoder", Path(folder) / "codec"
        decoder_config = read_speech_config(decoder_folder / "model.json")
        codec_config = read_codec_config(codec_folder / "model.json")
        with torch.device("meta"):
            speech = Speech(decoder_config, codec_config)
        # not used here: prefix layers are tuned keys and values, and the codec's encoder is for training
        decoder_tensors = _without(read_tensors(decoder_folder), "layers_prefix.")
        codec_tensors = _without(read_tensors(codec_folder), "encoder.")
        fill_module(speech.decoder, decoder_tensors, decoder_folder, dtype, device, check_finite)
        fill_module(speech.codec, fold_weight_norm(codec_tensors), codec_folder, dtype, device, check_finite)
        return speech.eval()

    @property
    def sample_rate(self) -> int:
        """Samples per second of the sound."""
        return self.codec.config.sampling_rate

    def tokens(
        self, embeds: torch.Tensor, *, generator: torch.Generator | None = None, **options: Any,
    ) -> Iterator[int]:  # fmt: skip
        """Codec tokens for rows of text, yielded one int at a time, without the end token.

        ``options`` are those of `TokenOptions`; ``generator`` draws the tokens (None: torch's own).

        Shapes: embeds [U, D], or rows that are several times as wide (see `text_rows`).
        Raises: ValueError for an option or a shape, before the first token.
        """
        return self._tokens(self.text_rows(embeds), TokenOptions(**options).check(), generator)

    def vocode(
        self, tokens: torch.Tensor | Sequence[int], voice: Sequence[int] | None = None,
        context: tuple[int, int] = (0, 0),
    ) -> torch.Tensor:  # fmt: skip
        """Sound of codec tokens. ``voice`` is a list of global tokens (default: those of codec/model.json).

        ``context``: how many tokens at the start and at the end give context and no sound (see `Vocoder`).

        Shapes: tokens [U] long, or a list -> [W] float32 in -1..1, W = (U - sum(context)) * hop.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.long, device=self.decoder.norm.weight.device)
        return self.codec(tokens[None], voice, context)[0]

    def stream(
        self, embeds: torch.Tensor, *, chunk: int = 40, padding: int = 10, window: int = 2401,
        threshold: float = 0.01, voice: Sequence[int] | None = None, **token_options: Any,
    ) -> Iterator[torch.Tensor]:  # fmt: skip
        """Sound of rows of text in pieces, each as early as possible, split at quiet samples (see `split_quiet`).

        The pieces together equal `vocode` of all tokens, because a chunk is computed only when all tokens that can
        influence it are known. At the end of the tokens, ``padding`` tokens behind a chunk are enough. The rest is the
        last piece and is not split.

        Shapes: as `tokens`; yields pieces [W] float32.
        Units: chunk and padding in tokens, window in samples, threshold as mean absolute amplitude.
        Raises: ValueError for an option or a shape, before the first piece.
        """
        for name, value, least in (("chunk", chunk, 1), ("padding", padding, 0), ("window", window, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        tokens = self.tokens(embeds, **token_options)
        return self._pieces(tokens, chunk, padding, window, threshold, voice)

    def text_rows(self, embeds):
        """Rows of the language model's embedding table as rows of width D. A wide row becomes several.

        Shapes: [rows, k*D] -> [U, D], U = rows * k.
        Source: upstream's web_ability_demo.py:407-410, where a row of 3584 becomes 4 of 896.
        """
        width, like = self.decoder.config.decoder.hidden_size, self.decoder.norm.weight
        if embeds.dim() != 2 or embeds.shape[1] % width or embeds.numel() == 0:
            raise ValueError(f"embeds must be [n, a multiple of {width}] with n > 0, got {list(embeds.shape)}")
        return embeds.reshape(-1, width).to(like.device, like.dtype)

    def _tokens(self, rows, options, generator):
        """The generator behind `tokens`, which has checked the arguments."""
        bos, sos, eos, pad = self.decoder.config.specials
        cache = self.decoder.new_cache()
        self.decoder.prefill(self.decoder.encode_text(rows[None]), cache)
        tokens = [sos]
        for _ in range(options.max_tokens):
            logits = self.decoder.step(tokens[-1], cache)  # [1, V]
            logits[:, [bos, sos, pad]] = -torch.inf  # these are no codes, and the codec has no vector for them
            if options.penalty_window > 0:
                recent = tokens[-options.penalty_window :]  # quirk: the start token counts as a recent token, as in upstream
                logits = apply_penalty(logits, recent, options.penalty)  # [1, V]
            token = int(sample(logits, options.sampling, [generator]))
            if token == eos:
                return
            tokens.append(token)
            yield token

    def _pieces(self, tokens, chunk, padding, window, threshold, voice):
        """The generator behind `stream`: pieces of sound for an iterable of codec tokens."""
        received, done = [], 0  # all tokens so far, and how many of them have become sound
        pending = self.vocode([], voice)  # sound that has not been yielded yet
        for token in itertools.chain(tokens, [None]):  # None marks the end
            if token is not None:
                received.append(token)
            following = padding if token is None else max(padding, self.codec.receptive_radius)
            while len(received) >= done + chunk + following:
                sound = self._vocode_span(received, done, done + chunk, voice)
                piece, pending = split_quiet(pending, sound, window, threshold)
                done += chunk
                if piece is not None:
                    yield piece
        if received:
            yield torch.cat([pending, self._vocode_span(received, done, len(received), voice)])

    def _vocode_span(self, tokens, start, stop, voice):
        """The samples of tokens[start:stop], as in the sound of all tokens. Shapes: [(stop - start) * hop]."""
        radius = self.codec.receptive_radius
        first, last = max(0, start - radius), min(len(tokens), stop + radius)
        return self.vocode(tokens[first:last], voice, (start - first, last - stop))


def _without(tensors, prefix):
    """The tensors whose names do not start with a prefix."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
