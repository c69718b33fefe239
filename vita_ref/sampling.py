"""From logits to the next token: pure functions on [B, V], in float32 whatever the dtype of the logits.

The order is that of Hugging Face: repetition penalty, temperature, top-k, top-p, then the draw. A filter sets the
logits of the tokens that it removes to minus infinity. No row depends on another one: each has its own generator.

B batch rows, V vocabulary.

Test: ``pytest tests/test_sampling.py``
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from .files.messages import shown

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
        max_new_tokens: the maximum number of new tokens. A prompt that leaves no space for them is refused. None: 256,
            or fewer if the checkpoint has no positions for more.
        eos_token_id: the id or ids that end an answer; None: the checkpoint's; (): none.
        pad_token_id: the id that fills rows which have ended.
        generator: the source of the draws, or one for each row; None: torch's own.
        seed: the seed of a new generator, instead of one.
        stop: a text or texts that end an answer, which does not include them; for answers as text only.
        max_seconds: ends an answer after so many seconds, counted from the start of its prompt.
        top: how many of the likeliest tokens are reported with their log-probabilities at each token of an answer; None
            reports no log-probabilities (a stream always reports those of its tokens).
        errors: what happens to a row whose logits are not finite: "raise" refuses the batch, "return" puts the
            ValueError in the place of the row's answer.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    eos_token_id: int | tuple | list | None = None
    pad_token_id: int | None = None
    generator: torch.Generator | list | None = None
    seed: int | None = None
    stop: str | tuple | list = ()
    max_seconds: float | None = None
    top: int | None = None
    errors: str = "raise"

    def check(self):
        """Returns the options unchanged. Raises: ValueError with the option, its range and the value."""
        new = 1 if self.max_new_tokens is None else self.max_new_tokens
        rules = (
            ("temperature", 0 if self.temperature is None else self.temperature, f"0 (greedy) or {TINY} to {HUGE}",
             lambda x: x == 0 or TINY <= x <= HUGE),
            ("top_k", self.top_k, "an integer of at least 0 (0 is off)", lambda x: isinstance(x, Integral) and x >= 0),
            ("max_new_tokens", new, "an integer of at least 1", lambda x: isinstance(x, Integral) and x >= 1),
            ("top_p", self.top_p, f"a number from {TINY} to 1 (1 is off)", lambda x: TINY <= x <= 1),
            ("repetition_penalty", self.repetition_penalty, f"a number from {TINY} to {HUGE} (1 is off)",
             lambda x: TINY <= x <= HUGE),
            ("seed", 0 if self.seed is None else self.seed, "an integer of 64 bits, or None",
             lambda x: isinstance(x, Integral) and -(2**63) <= x < 2**64),
            ("max_seconds", 1 if self.max_seconds is None else self.max_seconds, "a number above 0, or None",
             lambda x: 0 < x <= HUGE),
            ("top", 0 if self.top is None else self.top, "an integer of at least 0, or None",
             lambda x: isinstance(x, Integral) and x >= 0),
        )  # fmt: skip
        for name, value, expected, is_valid in rules:
            if isinstance(value, bool) or not isinstance(value, Real) or not is_valid(value):
                raise ValueError(f"{name} must be {expected}, got {shown(value)}")
        self._check_others()
        return self

    def _check_others(self):
        """The options that are no numbers of a range."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, (list, tuple)) else [self.eos_token_id]
        sources = self.generator if isinstance(self.generator, (list, tuple)) else [self.generator]
        if self.seed is not None and self.generator is not None:
            raise ValueError("seed and generator are two sources of the same draws: give one")
        rules = {
            "stop": ("a text, or a list of texts that are not empty", all(isinstance(x, str) and x for x in self.stops)),
            "do_sample": ("None, True or False", self.do_sample is None or isinstance(self.do_sample, bool)),
            "eos_token_id": ("a token id, a list of them, or None", all(map(is_token, ends))),
            "pad_token_id": ("a token id or None", is_token(self.pad_token_id)),
            "generator": (
                "a torch.Generator, a list of one for each row, or None",
                all(x is None or isinstance(x, torch.Generator) for x in sources),
            ),
            "errors": ("'raise' or 'return'", isinstance(self.errors, str) and self.errors in ("raise", "return")),
        }
        for name, (expected, is_valid) in rules.items():
            if not is_valid:
                raise ValueError(f"{name} must be {expected}, got {shown(getattr(self, name))}")

    @property
    def greedy(self):
        """Whether the likeliest token is taken."""
        return self.temperature == 0 or not (self.temperature if self.do_sample is None else self.do_sample)

    @property
    def stops(self):
        """The texts that end an answer, as a tuple."""
        return () if self.stop is None else tuple(self.stop) if isinstance(self.stop, (list, tuple)) else (self.stop,)

    def generators(self, rows, device):
        """A generator for each row, or None if nothing is drawn."""
        if self.greedy:
            return None
        source = self.generator if self.seed is None else torch.Generator(device).manual_seed(self.seed)
        return row_generators(source, rows, device)


def is_token(value):
    """Whether it can stand for a token: an integer of 64 bits, or None."""
    return value is None or isinstance(value, Integral) and not isinstance(value, bool) and abs(value) < 2**63


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
    """A generator for each row, seeded by draws from the given one (torch's own if None). A list of them stays a list.

    The draws of a row depend on its index and on the seed only, not on the other rows.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != rows:
            raise ValueError(f"generator must be one for each of {rows} rows, got a list of {len(generator)}")
        return list(generator)
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
