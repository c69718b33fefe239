"""The steps of gpu.sh, one a process: python -m tools.bench.gpu STEP DEVICE [FOLDER]

    golden   logits and greedy tokens of upstream's text cases, computed on the device in float32, against upstream's
    tokens   the demo's answers on the device against those of the processor: float32, and int8 and int4 weights
    rates    tokens/s of reading 1,091 tokens and of writing 64, of FOLDER, in bfloat16, beside transformers
    size     a folder of real size: seconds to load it, to read a picture and a question, tokens/s, memory

A step ends with status 1 if a comparison fails. Rates are printed, never judged.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from vita_ref import Vita

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "weights/demo/example.jpg"
QUESTIONS = ("Describe the image.", "What color is the star?", "How many shapes are there?", "Is there a red circle?")
NEW = 32  # tokens of an answer


def wait(device):
    """Returns when the device has done everything."""
    if device != "cpu":
        getattr(torch, device.split(":")[0]).synchronize()


def report(what, passed, detail):
    print(f"{what}: {'ok' if passed else 'OFF'}, {detail}", flush=True)
    return passed


def golden(device):
    """Upstream's cases that need no file but their own."""
    vita = Vita.from_pretrained(ROOT / "tests/golden/checkpoint", dtype="float32", device=device)
    cases = {name: load_file(ROOT / f"tests/golden/cases/{name}.safetensors") for name in ("text_single", "text_greedy")}
    single, greedy = ({k: v.to(device) for k, v in case.items()} for case in cases.values())
    with torch.inference_mode():
        logits = vita(single["input_ids"]).logits
    difference = (logits - single["logits"]).abs().max().item()
    passed = [report("golden logits", difference < 1e-3, f"largest difference {difference:.1e}")]
    want = greedy["generated"]
    ids = vita.generate(greedy["input_ids"], max_new_tokens=want.shape[-1], eos_token_id=())
    passed.append(report("golden greedy tokens", ids.view(-1).equal(want.view(-1)), f"{want.numel()} tokens"))
    return all(passed)


def tokens(device):
    """The demo's answers, on the device and on the processor."""
    passed = []
    for method in (None, "int8", "int4"):
        here, there = (Vita.from_pretrained(device=d, quantize=method, kernels="plain") for d in ("cpu", device))
        requests = [{"prompt": text, "images": [PICTURE]} for text in QUESTIONS]
        answers = [vita.respond_batch(requests, max_new_tokens=NEW) for vita in (here, there)]
        passed.append(report(f"answers, {method or 'float32'}", answers[0] == answers[1], f"{answers[1][0]!r}"))
        options = [{"max_new_tokens": NEW, "do_sample": True, "generator": torch.Generator(device).manual_seed(1)} for _ in range(2)]
        sampled = [there.respond(QUESTIONS[0], [PICTURE], **each) for each in options]
        passed.append(report("equal answers with equal seeds", sampled[0] == sampled[1], f"{sampled[0]!r}"))
    return all(passed)


def timed(device, generate, ids, new):
    """Tokens/s of reading and of writing, the second of two runs."""
    for _ in range(2):
        wait(device)
        start = time.perf_counter()
        generate(ids, 1)
        wait(device)
        first = time.perf_counter() - start
        start = time.perf_counter()
        generate(ids, new)
        wait(device)
        whole = time.perf_counter() - start
    return ids.numel() / first, (new - 1) / (whole - first)


def rates(device, folder):
    """Ours, with bfloat16, int8 and int4 weights, and transformers."""
    ids = torch.randint(100_000, (1, 1091), generator=torch.Generator().manual_seed(1)).to(device)
    for method in (None, "int8", "int4"):
        vita = Vita.from_pretrained(folder, dtype="bfloat16", device=device, quantize=method)
        found = timed(device, lambda x, n, v=vita: v.generate(x, max_new_tokens=n, eos_token_id=()), ids, 64)
        print(f"ours, {method or 'bfloat16'}: prefill {found[0]:.0f}, decode {found[1]:.1f} tokens/s", flush=True)
        del vita
    if not importlib.util.find_spec("transformers"):
        print("transformers is not installed")
        return True
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device).eval()
    model.generation_config.eos_token_id = None
    options = {"do_sample": False, "pad_token_id": 0}

    def generate(x, n):
        with torch.inference_mode():
            model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, **options)

    found = timed(device, generate, ids, 64)
    print(f"transformers: prefill {found[0]:.0f}, decode {found[1]:.1f} tokens/s", flush=True)
    return True


def size(device, folder):
    """Loading, one picture with a question, sixteen tokens."""
    start = time.perf_counter()
    vita = Vita.from_pretrained(folder, device=device)
    wait(device)
    loaded = time.perf_counter()
    times = []
    text = "What is in this picture?"
    vita.respond(text, [PICTURE], max_new_tokens=1, eos_token_id=())
    wait(device)
    start, loading = time.perf_counter(), loaded - start
    for new in (1, 17):
        vita.respond(text, [PICTURE], max_new_tokens=new, eos_token_id=())
        wait(device)
        times.append(time.perf_counter() - start - sum(times))
    print(f"load {loading:.1f} s, picture and question {times[0]:.2f} s, decode {16 / (times[1] - times[0]):.1f} tokens/s")
    if device.startswith("cuda"):
        print(f"memory of the card at its peak: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    return True


STEPS = {"golden": golden, "tokens": tokens, "rates": rates, "size": size}


def main(argv=None):
    """Entry point; returns the exit status."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("step", choices=STEPS)
    p.add_argument("arguments", nargs="+", metavar="DEVICE", help="cpu, cuda, ...; of rates and size also the folder")
    a = p.parse_args(argv)
    return 0 if STEPS[a.step](*a.arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
