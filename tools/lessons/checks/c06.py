"""The check of lesson 6, sampling."""

import math

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.sampling import filter_top_k, filter_top_p, repetition_penalty


def penalise(logits, seen, penalty):
    return repetition_penalty(logits, seen, penalty)


def probabilities(logits, temperature, top_k, top_p):
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return filter_top_p(filter_top_k(logits / temperature, top_k), top_p).softmax(-1)


FOUR = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).log()


def fractions(*numbers):
    return torch.tensor([numbers]) / sum(numbers)


def cases():
    some = 2 * randn(3, 9, seed=4)
    seen = torch.tensor([[1, 0, 0, 1]]).bool()
    return [
        Case("the text's penalty", "penalise", lambda my: my.penalise(torch.tensor([[-1.0, 0.5, 1, 3]]), seen, 2.0),
             torch.tensor([[-2.0, 0.5, 1, 1.5]])),
        Case("three rows, every third token has occurred", "penalise",
             lambda my: my.penalise(some, (torch.arange(27) % 3 == 0).view(3, 9), 1.3)),
        Case("temperature 1 changes nothing", "probabilities", lambda my: my.probabilities(FOUR, 1.0, 0, 1.0), fractions(1, 2, 4, 8)),
        Case("temperature 0.5 squares the probabilities", "probabilities",
             lambda my: my.probabilities(FOUR, 0.5, 0, 1.0), fractions(1, 4, 16, 64)),
        Case("temperature 0 is greedy, the lowest id of equal logits", "probabilities",
             lambda my: my.probabilities(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, -1.0]]), 0, 0, 1.0),
             torch.tensor([[0.0, 1, 0], [1, 0, 0]])),
        Case("top-k 2", "probabilities", lambda my: my.probabilities(FOUR, 1.0, 2, 1.0), fractions(0, 0, 4, 8)),
        Case("top-k above the vocabulary keeps all", "probabilities",
             lambda my: my.probabilities(FOUR, 1.0, 10, 1.0), fractions(1, 2, 4, 8)),
        Case("top-p 0.7", "probabilities", lambda my: my.probabilities(FOUR, 1.0, 0, 0.7), fractions(0, 0, 4, 8)),
        Case("top-p 0.1 keeps the likeliest", "probabilities", lambda my: my.probabilities(FOUR, 1.0, 0, 0.1), fractions(0, 0, 0, 1)),
        Case("tokens in no order: three rows with top-p 0.8", "probabilities", lambda my: my.probabilities(some, 1.0, 0, 0.8)),
        Case("all three together", "probabilities", lambda my: my.probabilities(some, 1.7, 5, 0.6)),
    ]  # fmt: skip


def top_p(logits, p, shift=0, back=True, low=-math.inf):
    """Top-p with mistakes: a shifted border, not put back in the order of ids, or another number than minus infinity."""
    probs, order = logits.softmax(-1).sort(descending=True, stable=True)
    removed = (probs.cumsum(-1) - probs * (1 - shift)) >= p
    return logits.masked_fill(removed.scatter(-1, order, removed) if back else removed, low)


def pipeline(temperature=lambda x, t: x / t, k=filter_top_k, p=filter_top_p, again=True):
    def wrong(logits, t, top_k, top):
        x = k(temperature(logits, t), top_k)
        kept = p(x, top) if top < 1 else x
        return kept.softmax(-1) if again else x.softmax(-1) * (kept > -math.inf)

    return {"probabilities": lambda *a: wrong(*a) if a[1] else probabilities(*a)}


def zeroed(x, k):
    return x if not 0 < k < x.shape[-1] else x.masked_fill(x < x.topk(k).values[:, -1:], 0.0)


def p_first(logits, temperature, top_k, p):
    if temperature == 0:
        return probabilities(logits, temperature, top_k, p)
    return filter_top_k(filter_top_p(logits, p) / temperature, top_k).softmax(-1)


LESSON = Lesson(
    6, "sampling", "sampling", {"penalise": penalise, "probabilities": probabilities}, cases,
    (
        Mistake("negative logits become likelier by the penalty", "a negative logit was divided, which makes it larger.",
                "divide positive logits, multiply the others.",
                {"penalise": lambda x, seen, r: torch.where(seen, x / r, x)}),
        Mistake("the penalty for tokens that have not occurred", "seen is used the wrong way round.",
                "change the logits where seen is True, keep the others.", {"penalise": lambda x, seen, r: penalise(x, ~seen, r)}),
        Mistake("the penalty subtracted", "it is a factor.", "divide or multiply by it.",
                {"penalise": lambda x, seen, r: torch.where(seen, x - r, x)}),
        Mistake("the penalty multiplies", "positive logits grow by it.", "divide positive logits, multiply negative ones.",
                {"penalise": lambda x, seen, r: torch.where(seen, x * r, x)}),
        Mistake("multiplied by the temperature", "a low temperature should sharpen; here it flattens.", "divide by the temperature.",
                pipeline(lambda x, t: x * t)),
        Mistake("temperature after the softmax", "probabilities were divided by it, which changes nothing once they sum to one.",
                "divide the logits, before the softmax.",
                {"probabilities": lambda x, t, k, p: probabilities(x, 1.0 if t else 0, k, p)}),
        Mistake("temperature 0 divides by zero", "0 stands for greedy and needs a line of its own.",
                "if the temperature is 0, return 1 at the argmax and 0 elsewhere.",
                {"probabilities": lambda x, t, k, p: filter_top_p(filter_top_k(x / t, k), p).softmax(-1)}),
        Mistake("top-k keeps one token too many", "the border is the logit number k + 1.", "keep the k largest.",
                pipeline(k=lambda x, k: filter_top_k(x, k + (k > 0)))),
        Mistake("removed logits set to zero", "a logit of 0 is a probability like any other.", "use minus infinity.",
                pipeline(k=zeroed)),
        Mistake("top-p drops the token that reaches p", "the kept tokens have less than p together.",
                "remove a token if those before it have p already.",
                {"probabilities": lambda *a: pipeline(p=lambda x, p: top_p(x, p, 1))["probabilities"](*a)}),
        Mistake("sorted tokens not put back", "the mask belongs to the sorted order, and was used in the order of ids.",
                "put the mask back with scatter, by the order that sort gives.",
                pipeline(p=lambda x, p: top_p(x, p, back=False))),
        Mistake("not shared out again", "after the filter the probabilities sum to less than one.",
                "take the softmax after the filters.", pipeline(again=False)),
        Mistake("top-p before temperature and top-k", "the order is temperature, top-k, top-p.",
                "filter by p last: its probabilities are those of the scaled logits that top-k has left.", {"probabilities": p_first}),
    ),
    {"penalise": "where seen: positive logits divided by the penalty, others multiplied by it.",
     "probabilities": "temperature 0: one at the argmax; else divide; fill logits below the k-th largest with minus infinity; sort the "
                      "softmax, remove tokens before which the cumulative sum has reached p, put the mask back by scatter; softmax."},
    ("sampling",),
)  # fmt: skip
