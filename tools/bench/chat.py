"""How long the first piece of a second turn takes, against the first turn and against reading everything again:

    python -m tools.bench.chat [--threads 1] [--dtype bfloat16] [--history 1000] [--turns 3] [--only random]

A random Qwen2 of 0.5B answers behind a history of so many tokens; the demo weights answer about a picture. It prints the
median of the turns: positions read, and seconds until the first piece, of the clock and of the processor (of all threads;
on a machine that others use, only those can be compared).
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import torch

from tools.bench.run import MODEL
from vita_ref import Vita, scale
from vita_ref.loading import demo_folder


class Characters:
    """A tokenizer for random weights: each character is one token."""

    bos_token_id = system_prompt = chat_template = None
    special_ids, leading_spaces = frozenset(), 0

    def __contains__(self, token_id):
        return True

    def __call__(self, text):
        return SimpleNamespace(input_ids=list(map(ord, text)))

    def piece(self, token_id):
        return b"x"

    def id_of(self, token):
        return None


def random_model(dtype):
    """A Qwen2 of 0.5B, as the other benchmarks have it, with random numbers that repeat, and with the fast products."""
    with torch.device("meta"):
        vita = Vita(MODEL, Characters())
    scale.install(vita, kernels="auto", quantize=None, split=False, pack=False)
    vita = vita.to(dtype).to_empty(device="cpu").requires_grad_(False)
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.02
    for weight in vita.parameters():
        weight.copy_(numbers.repeat(-(-weight.numel() // len(numbers)))[: weight.numel()].view_as(weight))
    return vita.eval()


def first_piece(stream):
    """Seconds until the first token of a stream, of the clock and of the processor, and its result."""
    start, busy = time.perf_counter(), time.process_time()
    next(stream)
    return time.perf_counter() - start, time.process_time() - busy, stream.finish()


def measure(vita, first, second, turns):
    """For turn 1, turn 2 and turn 2 without a cache: seconds until the first piece (see `first_piece`), positions read."""
    options, rows = {"max_new_tokens": 2, "eos_token_id": ()}, []
    vita.chat(**options).ask(**second)  # warms up
    for _ in range(turns):
        chat, cold = vita.chat(**options), vita.chat(**options)
        one = first_piece(chat.stream(**first))
        two = first_piece(chat.stream(**second))
        again = first_piece(cold.reply(chat.messages[:-1]))
        rows.append([(*t, result.prompt["total"] - result.prompt["cached"]) for *t, result in (one, two, again)])
    return [[statistics.median(row[i][k] for row in rows) for k in range(3)] for i in range(3)]


def report(what, vita, first, second, turns):
    """Prints the three rows and the ratio of turn 2 to turn 1."""
    results = measure(vita, first, second, turns)
    for name, (seconds, busy, positions) in zip(("turn 1", "turn 2", "turn 2, all read again"), results):
        print(f"{what}, {name}: {positions} positions, {seconds:.3f} s, processor {busy:.3f} s")
    one, two, again = (busy for _, busy, _ in results)
    print(f"{what}: turn 1 / turn 2 {one / two:.1f}, all read again / turn 2 {again / two:.1f}", flush=True)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--history", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=["demo", "random"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only != "random":
        picture = {"text": "What color is the star?", "images": demo_folder() / "example.jpg"}
        report("demo with a picture", Vita.from_pretrained(), picture, {"text": "And the circle?"}, args.turns)
    if args.only != "demo":
        vita, text = random_model(getattr(torch, args.dtype)), "x" * (args.history - 40)  # the template takes the rest
        report(f"0.5B, {args.dtype}", vita, {"text": text}, {"text": "And why is that so?"}, args.turns)


if __name__ == "__main__":
    main()
