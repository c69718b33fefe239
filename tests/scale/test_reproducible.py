"""The same call gives the same bits: fifty times in a process, and in a second process, with two threads.

Fifty times with the products of this processor, three times with those of other classes and in the second process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reproduce import GENERATED, PROMPTS, large_decoder

from vita_ref.scale.products import TABLE, processor_class

ROOT = Path(__file__).parents[2]
# this processor's own class, and those whose ways run on any processor
KINDS = sorted({processor_class(), *(kind for kind, table in TABLE.items() if table)})


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two fresh processes found: the digests of all results of each call."""
    folder = large_decoder(tmp_path_factory.mktemp("large") / "model")
    program = [sys.executable, str(Path(__file__).parent / "reproduce.py"), str(folder)]
    # threads that sleep while they wait: two processes share the cores with whatever else runs
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
    commands = [[*program, times, *KINDS] for times in ("50", "3")]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, env=environment, text=True) for each in commands]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output) for output in outputs]


def test_fifty_equal_calls_in_a_process_and_those_of_a_second_process_give_one_bit_pattern(both):
    first, second = both
    assert len(first) == (1 + 2 * len(KINDS)) * 2 * (len(PROMPTS) + len(GENERATED))
    assert {name: digests for name, digests in first.items() if len(digests) != 1} == {}
    assert first == second


def test_auto_reads_like_plain_and_generates_like_fast(both):
    found = both[0]
    for name, digests in found.items():
        kind, kernels, dtype, call = name.split(", ")
        if kernels == "auto":
            same = f"{kind}, fast" if call in GENERATED else f"{KINDS[0]}, plain"
            assert digests == found[f"{same}, {dtype}, {call}"], name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if TABLE[kind]])
def test_the_ways_of_the_table_were_at_work(both, kind):
    """Without this the other tests would pass if `kernels` did nothing: a way rounds differently from the plain product."""
    found = both[0]
    calls = {name: n for name, n in zip(PROMPTS, ("1", "4", "5-16", "many"))}
    differ = {
        (dtype, rows)
        for dtype in ("float32", "bfloat16")
        for call, rows in calls.items()
        if found[f"{kind}, fast, torch.{dtype}, {call}"] != found[f"{KINDS[0]}, plain, torch.{dtype}, {call}"]
    }
    assert differ and differ <= {(str(dtype).removeprefix("torch."), rows) for dtype, rows in TABLE[kind]}
