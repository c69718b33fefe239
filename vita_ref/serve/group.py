"""Some answers that are generated together, each as if it were alone. The loop is `Vita.steps`.

    jobs -> a cache with what is known of each prompt -> new media encoded -> the rest of the prompts -> a token for each ...

B batch rows, V vocabulary; n_i ids of a row.

Test: ``pytest tests/serve/test_engine.py``
"""

from dataclasses import replace

import torch

from ..answer import Stopped
from ..chat import encode, segments
from ..dialogue.messages import Medium
from ..inputs import Batch, check_inputs, spliced_inputs
from ..sampling import Sampling
from .errors import ProtocolError
from .jobs import Progress
from .limits import MAX_ROWS
from .prefixes import Prefixes

SHORT = 64  # new positions of a prompt: the work of padding to so many does not matter


@torch.inference_mode()
def run_group(vita, jobs, prefixes):
    """Generates the answers of prepared jobs. Yields after each step. What was computed is kept in ``prefixes``.

    A job whose client has left, or whose time is over, ends its row; the others go on.
    """
    stops, errors = vita.stop_ids, {}
    for job in jobs:
        job.begin(vita, stops)
    cache = Prefixes.cache(vita.decoder, [(job.prefix, job.past) for job in jobs])
    try:
        x = inputs_of(vita, jobs, cache)
        for step in vita.steps(x, options_of(vita, jobs, stops), errors, cache=cache, progress=lambda *at: report(jobs, *at)):
            for i, row in enumerate(zip(step.ids.tolist(), step.logits, step.ended.tolist())):
                if jobs[i].push(*row):
                    step.ended[i] = True
            yield
    except Stopped:  # while the prompts were read
        for job in jobs:
            if not job.answer.ids and job.reason == "time":
                errors[jobs.index(job)] = ProtocolError("the time of this request was over before its prompt was read", 503)
    for i, job in enumerate(jobs):
        message = job.finish(errors.get(i))
        if message is not None and job.answer.ids:
            q = job.question
            prefixes.keep(cache, i, job.elements + job.answer.ids, [*q.messages, message], q.media)


def inputs_of(vita, jobs, cache):
    """The rest of the prompts, behind what the cache has of them, as `Inputs`."""
    rests = [job.elements[job.kept :] for job in jobs]
    media = [x for rest in rests for x in rest if isinstance(x, Medium)]
    encode(list(dict.fromkeys(media)), vita, lambda *at: report(jobs, *at))
    for each in media:
        each.data = None  # only its features are needed from here on
    device, image, audio = vita.decoder.norm.weight.device, vita.config.image_token_index, vita.config.audio_token_index
    index = lambda x: (audio if x.kind == "audio" else image) if isinstance(x, Medium) else x
    whole, ids = ([torch.tensor([index(x) for x in row], device=device) for row in rows] for rows in
                  ([job.elements for job in jobs], rests))  # fmt: skip
    images, sounds = ([x.features for x in media if (x.kind == "audio") is wanted] for wanted in (False, True))
    x = spliced_inputs(vita, Batch(ids), images, sounds, cache=cache)
    check_inputs(x)
    return x._replace(batch=Batch(whole), segments=[segments(job.elements) for job in jobs])


def options_of(vita, jobs, stops):
    """The `Sampling` options of all rows: each has its own generator, as if it were alone."""
    first, device = jobs[0].question.sampling, vita.decoder.norm.weight.device
    own = [job.question.sampling.generators(1, device) for job in jobs]
    return replace(
        Sampling(errors="return"), temperature=first.temperature, top_p=first.top_p, top_k=first.top_k,
        repetition_penalty=first.repetition_penalty, eos_token_id=stops, max_new_tokens=max(job.most for job in jobs),
        generator=None if first.greedy else [generator for [generator] in own],
    )  # fmt: skip


def report(jobs, what, done, total):
    """Tells the clients what has been read. Raises: Stopped if all of them have left."""
    reasons = [job.reason for job in jobs]
    if all(reasons):
        raise Stopped(reasons[0])
    for job in jobs:
        job.send(Progress(what, done, total))


def together(jobs, limit):
    """Whether it helps to answer jobs together: the same sampling, little padding, and room for all of them."""
    if len(jobs) > MAX_ROWS or len({job.style for job in jobs}) > 1 or any(job.alone for job in jobs):
        return False
    new, lengths = [job.length - job.past for job in jobs], [job.length for job in jobs]
    is_full = all(len(jobs) * max(each) <= 2 * sum(each) or max(each) <= SHORT for each in (new, lengths))
    return is_full and max(lengths) + max(job.most for job in jobs) <= limit
