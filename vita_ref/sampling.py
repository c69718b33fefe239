"""From logits to the next token: pure functions on [B, V], in float32 whatever comes in.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, then the draw. A
filter puts minus infinity where a token is out. No row looks at another one; only the draws of a
sampled batch come one after the other from the same generator, so there a row's luck depends on how
many rows stand beside it.

Test: ``pytest tests/test_sampling.py``
"""

import math

import torch

TINY, HUGE = 1e-30, 1e30  # what lies beyond would be 0 or infinite in float32


def check_options(*, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """Refuses options out of range.

    Raises: ValueError that gives the option, its range and what came.
    """
    rules = (
        ("temperature", temperature, f"0 (greedy) or a number of {TINY} to {HUGE}", lambda x: x == 0 or TINY <= x <= HUGE),
        ("top_k", top_k, "a whole number >= 0 (0 is off)", lambda x: isinstance(x, int) and x >= 0),
        ("top_p", top_p, f"a number of {TINY} to 1 (1 is off)", lambda x: TINY <= x <= 1),
        ("repetition_penalty", repetition_penalty, f"a number of {TINY} to {HUGE} (1 is off)", lambda x: TINY <= x <= HUGE),
    )
    for name, value, expected, good in rules:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not good(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def repetition_penalty(logits, seen, penalty):
    """Makes tokens that were seen less likely: positive logits divided by the penalty, negative ones multiplied.

    Shapes: logits [B, V]; seen [B, V] bool; gives [B, V] float32.
    Source: CTRL (Keskar et al. 2019), section 4.1, with the sign taken into account as Hugging Face does.
    """
    logits = logits.float()  # [B, V]
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)  # [B, V]
    return torch.where(seen, lowered, logits)


def filter_top_k(logits, k):
    """Keeps the k largest logits of each row, and whatever equals the smallest of them; 0 keeps all.

    Shapes: [B, V] -> [B, V] float32.
    """
    logits = logits.float()  # [B, V]
    if not 0 < k < logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < smallest, -math.inf)


def filter_top_p(logits, p):
    """Keeps the fewest likeliest tokens whose probabilities reach p together, at least one; 1 keeps all.

    Shapes: [B, V] -> [B, V] float32.
    Source: The Curious Case of Neural Text Degeneration (Holtzman et al. 2019), section 3.1.
    """
    logits = logits.float()  # [B, V]
    if p >= 1:
        return logits
    probs, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs  # [B, V]
    out = before >= p  # [B, V]; nothing is before the likeliest, so it stays
    return logits.masked_fill(out.scatter(-1, order, out), -math.inf)


def sample(logits, *, do_sample=False, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """The next token of each row: the likeliest one, or one drawn where ``do_sample`` and temperature > 0.

    Equal logits: the lowest id is the likeliest. All draws come from the one ``generator`` (torch's own, if None).

    Shapes: [B, V] -> [B] long.
    """
    if not do_sample or temperature == 0:
        return logits.float().argmax(-1)
    logits = logits.float()  # [B, V]
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # [B, V]; 0 at most, so nothing overflows
    kept = filter_top_p(filter_top_k(scaled, top_k), top_p)  # [B, V]
    return torch.multinomial(kept.softmax(-1), 1, generator=generator).squeeze(-1)
