"""Measures the ways of `vita_ref.scale.products` on this machine: the evidence for a row of its table.

    python -m tools.bench --products [--threads 1] [--turns 5]

For each dtype and class of rows it multiplies by matrices of a 0.5B and a 7B decoder. The weights come from memory, not
from a cache: each product takes the next of several copies. The ways take turns, and the figure of a way is the median
of plain's time over its own, for each size and number of rows. The printed cell is the median of these ratios
[least..largest]; above 1 the way is faster than plain. The last columns say which way the figures support and which one
the table has.

With one thread the time is that of the processor, so programs that run beside it disturb little. With more threads it is
the clock's, which needs a quiet machine.

R rows, I inputs, O outputs.

Test: ``pytest tests/tools/test_bench.py``
"""

import statistics
import time

import torch

from vita_ref.scale import products

SIZES = {(4864, 896): 1, (896, 4864): 1, (896, 896): 1, (18944, 3584): 2, (3584, 18944): 2, (151936, 896): 2}
ROWS = {"1": (1,), "2-3": (2, 3), "4": (4,), "5-16": (8, 16), "many": (64, 256)}  # class -> what stands for it
GAIN = 1.1  # a way has to be this much faster than plain in the median, and in no size slower than plain by as much
MEMORY = 160e6  # bytes of all copies of a matrix, more than a processor's cache
READ = 16e6  # bytes that one trial reads at least


def columns(rows, weight):
    """The weight on the left. A candidate that no row of the table uses."""
    return torch.mm(weight, rows.T).T.contiguous()


CANDIDATES = products.WAYS | {"columns": columns}


def times(rows, copies, ways, turns, clock):
    """Median seconds of each way. The first turn does not count. Shapes: rows [R, I], each copy [O, I]."""
    repeats, used = max(1, int(READ // copies[0].nbytes)), 0
    seconds = {name: [] for name in ways}
    for _ in range(1 + turns):
        for name, way in ways.items():
            start = clock()
            for _ in range(repeats):
                way(rows, copies[used % len(copies)])
                used += 1
            seconds[name].append((clock() - start) / repeats)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def ratios(dtype, row_class, sizes=SIZES, ways=CANDIDATES, turns=5, clock=time.thread_time):
    """Of each way, plain's time over its own, for every size and number of rows of a class."""
    every = {name: [] for name in ways}
    for (outputs, inputs), weight_class in sizes.items():
        if row_class == "many" and weight_class > 1:  # minutes each, and the ratio is that of the smaller ones
            continue
        count = -int(-MEMORY // (outputs * inputs * dtype.itemsize))
        copies = [torch.randn(outputs, inputs).to(dtype) for _ in range(count)]
        for rows in ROWS[row_class]:
            median = times(torch.randn(rows, inputs).to(dtype), copies, ways, turns, clock)
            for name in ways:
                every[name].append(median["plain"] / median[name])
    return every


def supported(every):
    """The way that the ratios support: the fastest in the median, or plain if none is clearly faster."""
    usable = {n: statistics.median(r) for n, r in every.items() if n in products.WAYS and min(r) > 1 / GAIN}
    best = max(usable, key=usable.get)
    return best if usable[best] >= GAIN else "plain"


def report(threads, turns, dtypes=(torch.float32, torch.bfloat16), classes=tuple(ROWS)):
    """Prints the table of this machine as Markdown, line by line."""
    torch.set_num_threads(threads)
    kind, clock = products.processor_class(), time.thread_time if threads == 1 else time.perf_counter
    names = [name for name in CANDIDATES if name != "plain"]
    print(f"class {kind}, {threads} thread{'s' * (threads > 1)}: speed of each way, plain is 1")
    print(f"| {' | '.join(['dtype', 'rows', *names, 'supports', 'table'])} |\n|{' --- |' * (len(names) + 4)}", flush=True)
    for dtype in dtypes:
        for row_class in classes:
            every = ratios(dtype, row_class, turns=turns, clock=clock)
            cells = [f"{statistics.median(every[n]):.2f} [{min(every[n]):.2f}..{max(every[n]):.2f}]" for n in names]
            committed = products.TABLE[kind].get((dtype, row_class), "plain")
            row = [str(dtype).removeprefix("torch."), row_class, *cells, supported(every), committed]
            print(f"| {' | '.join(row)} |", flush=True)
