"""The command line: ``python -m vita_ref.generate --image x.jpg`` prints the answer and nothing else.

    flags -> Request -> Vita.prepare -> Vita.answer -> text, piece by piece

User errors print one line on standard error and exit with status 2; Ctrl-C exits quietly with status 130.

Test: ``pytest tests/test_generate.py``
"""

import functools
import sys
import time

import torch

from .answer import Control
from .cli.batch import answer_batch
from .cli.flags import check, loading_options, parser, sampling_options, world_size
from .cli.requests import read_requests
from .cli.speak import speech_file
from .cli.terminal import (
    exit_status,
    json_line,
    loading_bar,
    reading_bar,
    run_process,
    watched,
)
from .model import Vita


def main(argv=None):
    """Entry point; returns the exit status."""
    return exit_status(run, parser(), argv)


def run(args):
    """Loads the model and answers."""
    if args.dry_run:
        from .cli.dry_run import dry_run

        dry_run(args)
    elif world_size() > 1:
        from .cli.ranks import run_ranks

        run_ranks(args, load, answer_all)
    elif args.page or args.explain:
        from .cli.look import show_look

        show_look(*load(args), args)
    else:
        answer_all(*load(args), args)


def load(args):
    """The model, its requests, and the seconds that loading took. One prepared request, or what --batch and --page read."""
    check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    requests, start = read_requests(args), time.perf_counter()
    vita = Vita.from_pretrained(args.model, **loading_options(args, loading_bar() if watched(args) else None))
    seconds = time.perf_counter() - start
    requests = requests if args.batch or args.page or args.explain else [vita.prepare(requests[0], args.max_new_tokens)]
    return vita, requests, seconds


def answer_all(vita, requests, load_seconds, args):
    """Answers and prints."""

    def show(each, timing, line):
        timing = {"load_s": round(load_seconds, 4)} | timing
        if args.json or args.batch:
            print(json_line(line | as_json(vita, each, args.top) | {"timing": timing}), flush=True)
        else:
            print(each.text if args.no_stream else "", flush=True)
        if watched(args):
            times = ", ".join(f"{name} {value}" for name, value in timing.items())
            print(f"{times}, {each.prompt_counts()['total']} positions", file=sys.stderr)

    if args.batch:
        prepare = functools.partial(vita.prepare, max_new_tokens=args.max_new_tokens)
        answer_batch(requests, prepare, lambda group: answer(vita, group, args), show, args)
    else:
        [each], timing = answer(vita, requests, args)
        show(each, timing, {})


def answer(vita, prepared, args):
    """Answers some requests together. The first answer is printed and spoken while it is generated."""
    stream = not (args.json or args.batch or args.no_stream)
    start, times = time.perf_counter(), []
    with speech_file(vita, args.speak, args.speed) as speak, reading_bar(watched(args)) as report:
        for answers in vita.answer(prepared, sampling_options(args), Control(report)):
            times.append(time.perf_counter())
            speak(answers[0].piece)
            if stream:
                print(answers[0].piece, end="", flush=True)
    prefill, decode = times[0] - start, times[-1] - times[0]
    rate = (len(times) - 2) / max(decode, 1e-9)  # the first token is part of the prefill; no token has the last time
    return answers, {"prefill_s": round(prefill, 4), "decode_s": round(decode, 4), "tokens_per_s": round(rate, 2)}


def as_json(vita, answer, top):
    """What --json prints of one answer, without the timing."""
    fields = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt": answer.prompt_counts(),
        "state": answer.state,
    }
    if top:
        likeliest = answer.first_logits.float().softmax(-1).topk(min(top, len(answer.first_logits)))
        pairs = zip(likeliest.values.tolist(), likeliest.indices.tolist())
        fields["top"] = [{"token_id": i, "token": vita.text([i], False), "probability": p} for p, i in pairs]
    return fields


def console():
    """The console script ``vita-ref``."""
    run_process(main)


if __name__ == "__main__":
    console()
