"""Lesson 13: speech, token by token.

VITA speaks with a second, smaller decoder. It reads the embeddings of the answer's text and writes codec tokens, small pieces of
sound: 40 tokens are one second. A vocoder turns tokens into samples, `hop` samples a token (600). The loop is the one you know, with
a start token in front, and an end token that is not spoken.

A greedy speech decoder likes to hum: it repeats a token for ever. So tokens among the last `window` ones are penalised. VITA's rule
differs from the repetition penalty of lesson 6 in two ways, and the weights are used with it, so it must be kept: a logit is divided
by the penalty once for every occurrence, and negative logits are divided too (which makes them likelier; it is a quirk). The start
token counts as one of the last tokens.

To begin to speak before the sentence is finished, the tokens are vocoded in chunks. A sample depends on `radius` tokens to either
side of its own. So a chunk is vocoded together with that many neighbours, as far as they exist, and the samples of the neighbours
are cut off. If this is right, the pieces joined are the sound of all tokens at once, sample by sample.

    logits [2, -3, 1], recent tokens [0, 1, 0], penalty 2:   token 0 twice, token 1 once
    -> [2 / 4, -3 / 2, 1] = [0.5, -1.5, 1]

    tokens   0 1 2 3 4 5 6 7 8 9       chunk 4, radius 2
    piece 0 [0 1 2 3]+4 5              vocode 0..5, keep the samples of 0..3
    piece 1  2 3+[4 5 6 7]+8 9         vocode 2..9, keep the samples of 4..7
    piece 2          6 7+[8 9]         vocode 6..9, keep the samples of 8..9

To do: write `penalise_recent`, `codes` and `pieces`. Then run:  python tools/lessons/run.py 13
"""

from collections.abc import Callable

import torch


def penalise_recent(logits: torch.Tensor, recent: list, penalty: float) -> torch.Tensor:
    """logits [V]; recent, a list of token ids -> [V]"""
    raise NotImplementedError


def codes(step: Callable, start: int, end: int, window: int, penalty: float, limit: int) -> list[int]:
    """step takes the last token (an int) and gives the logits [V] of the next one -> the likeliest tokens after the penalty, as a
    list, without start and end, at most limit of them. step is called once for each token, start first."""
    raise NotImplementedError


def pieces(vocode: Callable, tokens: list, chunk: int, radius: int, hop: int) -> list[torch.Tensor]:
    """vocode takes a list of tokens and gives [hop * number] samples -> a list of [W_i], a piece for each chunk of tokens; the last
    chunk may be shorter. Never give vocode more than a chunk and its neighbours."""
    raise NotImplementedError
