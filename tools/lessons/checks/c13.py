"""The check of lesson 13, speech."""

from types import SimpleNamespace

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.speech import Speech
from vita_ref.voice.decoder import apply_penalty

HOP = 3


def penalise_recent(logits, recent, penalty):
    return apply_penalty(logits[None], list(recent), penalty)[0]


def codes(step, start, end, window, penalty, limit):
    tokens = [start]
    while len(tokens) <= limit:
        recent = tokens[-window:] if window > 0 else []
        token = int(penalise_recent(step(tokens[-1]), recent, penalty).argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens[1:]


def pieces(vocode, tokens, chunk, radius, hop):
    """By the package's `Speech._vocode_span`, which cuts the context off."""

    def spoken(part, voice, context):
        sound = vocode(part)
        return sound[context[0] * hop : len(sound) - context[1] * hop]

    speech = SimpleNamespace(codec=SimpleNamespace(receptive_radius=radius), vocode=spoken)
    return [Speech._vocode_span(speech, tokens, i, min(i + chunk, len(tokens)), None) for i in range(0, len(tokens), chunk)]


class Steps:
    """A speech decoder that needs no weights: the logits depend on the last token and on the number of the call."""

    def __init__(self):
        self.called = []

    def __call__(self, token):
        self.called.append(token)
        n = len(self.called)
        logits = torch.tensor([2.0, 1.9, 1.7, 0.5, -1.0, -2.0])  # token 4 is the start token, token 5 the end token
        logits[5] = 3.0 if n > 9 else -2.0
        return logits


def vocode(tokens):
    """A vocoder in which a sample depends on two tokens to either side."""
    x = torch.tensor(tokens, dtype=torch.float32)
    wide = torch.nn.functional.pad(x, (2, 2))
    mixed = sum(w * wide[i : i + len(x)] for i, w in enumerate((0.1, 0.3, 1.0, 0.2, 0.05)))
    return (mixed[:, None] * torch.tensor([1.0, -0.5, 0.25])).flatten()


def joined(my, tokens, chunk):
    """The pieces, joined, and the largest number of tokens that were vocoded at once."""
    most = []

    def counted(part):
        most.append(len(part))
        return vocode(list(part))

    made = my.pieces(counted, tokens, chunk, 2, HOP)
    return torch.cat(list(made)), len(made), max(most) <= chunk + 4


def run_codes(my, window, penalty, limit=20):
    steps = Steps()
    return list(my.codes(steps, 4, 5, window, penalty, limit)), steps.called


def cases():
    tokens = [5, 1, 4, 2, 8, 3, 3, 7, 6, 9]
    return [
        Case("the text's example", "penalise_recent", lambda my: my.penalise_recent(torch.tensor([2.0, -3, 1]), [0, 1, 0], 2.0),
             torch.tensor([0.5, -1.5, 1])),
        Case("nothing is recent", "penalise_recent", lambda my: my.penalise_recent(randn(5), [], 1.3), randn(5)),
        Case("penalty 1 changes nothing: token 0 nine times, then the end", "codes",
             lambda my: run_codes(my, 3, 1.0), ([0] * 9, [4] + [0] * 9)),
        Case("penalty 1.1 over a window of 2", "codes", lambda my: run_codes(my, 2, 1.1)),
        Case("penalty 1.1 over a window of 5", "codes", lambda my: run_codes(my, 5, 1.1)),
        Case("no window, no penalty", "codes", lambda my: run_codes(my, 0, 1.1)),
        Case("at most 3 tokens", "codes", lambda my: run_codes(my, 2, 1.1, 3)),
        Case("the start token counts: with a window of 1 its logit, the largest, is penalised in the first step", "codes",
             lambda my: list(my.codes(lambda token: torch.tensor([1.9, 2.0, 0.5]), 1, 2, 1, 1.1, 1))),
        Case("10 tokens in chunks of 4 sound as at once", "pieces", lambda my: joined(my, tokens, 4), (vocode(tokens), 3, True)),
        Case("chunks of 5, without a rest", "pieces", lambda my: joined(my, tokens, 5), (vocode(tokens), 2, True)),
        Case("chunks of 1", "pieces", lambda my: joined(my, tokens, 1), (vocode(tokens), 10, True)),
    ]  # fmt: skip


def counted(logits, recent):
    return torch.bincount(torch.tensor(recent, dtype=torch.long), minlength=len(logits))


def once(logits, recent, penalty):
    return logits / penalty ** counted(logits, recent).clamp(max=1)


def signed(logits, recent, penalty):
    n = penalty ** counted(logits, recent)
    return torch.where(logits > 0, logits / n, logits * n)


def speak(step, start, end, window, penalty, limit, with_end=False, with_start=False, start_counts=True, oldest=False, penalise=penalise_recent):
    tokens = [start]
    while len(tokens) <= limit:
        past = tokens if start_counts else tokens[1:]
        recent = past[:window] if oldest else past[-window:]
        token = int(penalise(step(tokens[-1]), recent if window > 0 else [], penalty).argmax())
        if token == end:
            return tokens[1 - with_start :] + [end] * with_end
        tokens.append(token)
    return tokens[1 - with_start :]


def with_codes(**options):
    return {"codes": lambda *a: speak(*a, **options)}


def no_window(step, start, end, window, penalty, limit):
    return speak(step, start, end, window if window else 10**6, penalty, limit)


def cut(vocode, tokens, chunk, radius, hop, left=True, right=True, trim=True, rest=True):
    out = []
    for start in range(0, len(tokens), chunk):
        stop = min(start + chunk, len(tokens))
        if stop - start < chunk and not rest:
            continue
        first, last = max(0, start - radius * left), min(len(tokens), stop + radius * right)
        sound = vocode(tokens[first:last])
        out.append(sound[(start - first) * hop :][: (stop - start) * hop] if trim else sound)
    return out


def with_pieces(**options):
    return {"pieces": lambda *a: cut(*a, **options)}


def fixed_trim(vocode, tokens, chunk, radius, hop):
    """Cuts the radius off on both sides, also at the ends, where there are no neighbours."""
    out = []
    for start in range(0, len(tokens), chunk):
        sound = vocode(tokens[max(0, start - radius) : start + chunk + radius])
        out.append(sound[radius * hop : len(sound) - radius * hop])
    return out


LESSON = Lesson(
    13, "speech", "speech, token by token", {"penalise_recent": penalise_recent, "codes": codes, "pieces": pieces}, cases,
    (
        Mistake("a token penalised once", "a token that occurs twice is divided twice here.", "divide by the penalty to the power of the count.",
                {"penalise_recent": once}),
        Mistake("negative logits multiplied", "that is the rule of lesson 6. VITA's speech divides them too.", "divide every recent logit.",
                {"penalise_recent": signed}),
        Mistake("the penalty multiplies", "recent tokens become likelier.", "divide by it.",
                {"penalise_recent": lambda x, recent, p: x * p ** counted(x, recent)}),
        Mistake("the end token spoken", "the end token is no sound.", "leave the loop before you append it.", with_codes(with_end=True)),
        Mistake("the start token spoken", "the start token is no sound.", "leave it out of the result.", with_codes(with_start=True)),
        Mistake("the start token not counted", "it is one of the recent tokens.", "keep it in the list that the window is cut from.",
                with_codes(start_counts=False)),
        Mistake("the window from the beginning", "the oldest tokens were penalised.", "take the last tokens.", with_codes(oldest=True)),
        Mistake("window 0 penalises all", "a slice [-0:] is the whole list.", "with a window of 0 or less, penalise nothing.", {"codes": no_window}),
        Mistake("no neighbours", "each chunk was vocoded alone, and is wrong near its ends.", "vocode it with radius tokens on either side.",
                with_pieces(left=False, right=False)),
        Mistake("neighbours on the left alone", "the end of each chunk lacks what follows.", "add the tokens behind the chunk too.",
                with_pieces(right=False)),
        Mistake("neighbours on the right alone", "the beginning of each chunk lacks what came before.", "add the tokens before the chunk too.",
                with_pieces(left=False)),
        Mistake("the neighbours' samples kept", "they are heard twice.", "cut hop samples for each neighbour off.", with_pieces(trim=False)),
        Mistake("the last chunk lost", "the rest of the tokens makes a shorter piece.", "also vocode the rest.", with_pieces(rest=False)),
        Mistake("the radius cut off at the ends too", "the first and the last chunk have fewer neighbours than radius.",
                "cut off as many tokens as there were neighbours.", {"pieces": fixed_trim}),
    ),
    {"penalise_recent": "count each token in recent; divide the logits by penalty to the power of the count.",
     "codes": "begin a list with start; step with its last token; penalise its last window tokens; argmax; end? else append; give all but start.",
     "pieces": "for each chunk: first = start - radius, at least 0; last = stop + radius, at most the end; vocode; cut hop samples for each token "
               "before start and behind stop."},
)  # fmt: skip
