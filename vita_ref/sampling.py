"""From logits to the next token: pure functions on [B, V], in float32 whatever the dtype of the logits.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, then the draw. A filter sets the
logits of the tokens that it removes to minus infinity. No row depends on another one: each has its own generator.

B batch rows, V vocabulary.

Test: ``pytest tests/test_sampling.py``
"""

import math
from dataclasses import dataclass

import torch

TINY, HUGE = 1e-30, 1e30  # numbers beyond these would become 0 or infinite in float32


@dataclass(frozen=True)
class Sampling:
    """How the next tokens are chosen, and when to stop. The defaults are greedy.

    Attributes:
        do_sample: None samples if the temperature is above 0; True samples, at 1.0 if no temperature is given;
            False is greedy.
        temperature: 0 is greedy.
        top_p: keep the fewest likeliest tokens whose probabilities add up to this number; 1 keeps all.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        repetition_penalty: above 1, tokens that have occurred become less likely; 1 is off.
        max_new_tokens: the maximum number of new tokens.
        eos_token_id: the id or ids that end an answer; None: the checkpoint's; (): none.
        pad_token_id: the id that fills rows which have ended.
        generator: the source of the draws; None: torch's own.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    eos_token_id: int | tuple | list | None = None
    pad_token_id: int | None = None
    generator: torch.Generator | None = None

    def check(self):
        """Returns the options unchanged. Raises: ValueError with the option, its range and the value."""
        rules = (
            ("temperature", 0 if self.temperature is None else self.temperature, f"0 (greedy) or {TINY} to {HUGE}",
             lambda x: x == 0 or TINY <= x <= HUGE),
            ("top_k", self.top_k, "an integer of at least 0 (0 is off)", lambda x: isinstance(x, int) and x >= 0),
            ("max_new_tokens", self.max_new_tokens, "an integer of at least 1", lambda x: isinstance(x, int) and x >= 1),
            ("top_p", self.top_p, f"a number from {TINY} to 1 (1 is off)", lambda x: TINY <= x <= 1),
            ("repetition_penalty", self.repetition_penalty, f"a number from {TINY} to {HUGE} (1 is off)",
             lambda x: TINY <= x <= HUGE),
        )  # fmt: skip
        for name, value, expected, is_valid in rules:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_valid(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        return self

    @property
    def greedy(self):
        """Whether the likeliest token is taken."""
        return self.temperature == 0 or not (self.temperature if self.do_sample is None else self.do_sample)


def repetition_penalty(logits, seen, penalty):
    """Makes tokens that have occurred less likely: positive logits are divided by the penalty, others multiplied.

    Shapes: logits [B, V]; seen [B, V] bool -> [B, V] float32.
    Source: CTRL (Keskar et al. 2019), section 4.1; the cases for the two signs are those of Hugging Face.
    """
    logits = logits.float()  # [B, V]
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)  # [B, V]
    return torch.where(seen, lowered, logits)


def seen_tokens(input_ids, attention_mask, vocab_size, device=None):
    """Which tokens occur in each prompt. Placeholders (negative ids) and padding do not count.

    Shapes: input_ids [B, n], or a list of [n_i]; attention_mask [B, n] or None -> [B, V] bool.
    """
    seen = torch.zeros(len(input_ids), vocab_size, dtype=torch.bool, device=device)  # [B, V]
    for i, row in enumerate(input_ids):
        row = torch.as_tensor(row, dtype=torch.long)
        row = row if attention_mask is None else row[attention_mask[i].bool()]
        seen[i, row[(row >= 0) & (row < vocab_size)]] = True
    return seen


def filter_top_k(logits, k):
    """Keeps the k largest logits of each row, and those equal to the smallest of them; 0 keeps all.

    Shapes: [B, V] -> [B, V] float32.
    """
    logits = logits.float()  # [B, V]
    if not 0 < k < logits.shape[-1]:
        return logits
    smallest = logits.topk(k).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < smallest, -math.inf)


def filter_top_p(logits, p):
    """Keeps the fewest likeliest tokens whose probabilities add up to p or more, at least one; 1 keeps all.

    Of equal logits the lower ids come first. Shapes: [B, V] -> [B, V] float32.
    Source: The Curious Case of Neural Text Degeneration (Holtzman et al. 2019), section 3.1.
    """
    logits = logits.float()  # [B, V]
    if p >= 1:
        return logits
    probs, order = logits.softmax(-1).sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs  # [B, V]
    removed = before >= p  # [B, V]; nothing comes before the likeliest token, so it stays
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)


def row_generators(generator, rows, device="cpu"):
    """A generator for each row, seeded by draws from the given one (torch's own if None).

    The draws of a row depend on its index and on the seed only, not on the other rows.
    """
    seeds = torch.randint(2**62, (rows,), generator=generator, device=generator.device if generator else "cpu")
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def sample(logits, options=Sampling(), generators=None):
    """The next token of each row: the likeliest one (the lowest id of several), or one drawn by its generator.

    Shapes: logits [B, V]; generators, B of them, or None for torch's own -> [B] long.
    """
    logits = logits.float()  # [B, V]
    if options.greedy:
        return logits.argmax(-1)
    temperature = 1.0 if options.temperature is None else options.temperature
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature  # [B, V]; at most 0, so nothing overflows
    probs = filter_top_p(filter_top_k(scaled, options.top_k), options.top_p).softmax(-1)  # [B, V]
    draws = [torch.multinomial(row, 1, generator=g) for row, g in zip(probs, generators or [None] * len(probs))]
    return torch.cat(draws)
