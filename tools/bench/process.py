"""One side of a measurement, in a process of its own: `run.py` starts it and gives it one task at a time.

    python tools/bench/process.py WHO THREADS      WHO: ours, theirs (transformers) or limits (the machine)

A task is a line of JSON on standard input, [name, [arguments]]; the answer is a line of JSON on standard output. A side
imports before the first task what its user would, so ``memory`` can tell the model's memory from that of the imports.
What transformers imports during loading is timed separately (``late_s``). Linux only: memory is read from /proc.

Test: ``pytest tests/tools/test_bench.py``
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

CLOCK = time.perf_counter


def resident(name):
    """Memory of this process in bytes: ``VmRSS``, resident now, or ``VmHWM``, its peak."""
    return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def prompt_ids(batch, length, vocabulary):
    """The same random prompts for every side. Shapes: -> [batch, length] long."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def rates(start, times, batch, prompt, new):
    """From the times at which tokens were generated: seconds to the first one, and tokens/s of prefill and decoding."""
    if len(times) != new:
        raise RuntimeError(f"expected {new} tokens, but {len(times)} were generated")
    first = times[0] - start
    decode = batch * (new - 1) / (times[-1] - times[0]) if new > 1 else 0.0
    return {"first_s": first, "prefill": batch * prompt / first, "decode": decode}


class Ours:
    """vita_ref, used as its users do."""

    def __init__(self):
        import vita_ref

        self.library, self.imports = vita_ref.Vita, resident("VmRSS")

    def load(self, folder, dtype, option=None):
        options = {"packed": {"pack": True}}.get(option, {"quantize": option})
        start = CLOCK()
        self.vita = self.library.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
        return {"late_s": 0.0, "load_s": CLOCK() - start}

    def tokens(self, prompt, batch, new):
        ids, times = prompt_ids(batch, prompt, self.vita.config.decoder.vocab_size), []
        start = CLOCK()
        self.vita.generate(ids, max_new_tokens=new, eos_token_id=(), stream=lambda _: times.append(CLOCK()))
        return rates(start, times, batch, prompt, new)

    def memory(self):
        return {"imports": self.imports, "peak": resident("VmHWM")}

    def growth(self, prompt):
        """Bytes that a prompt needs at its peak, in addition to what was resident before it."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        self.tokens(prompt, 1, 1)
        return {"bytes": resident("VmHWM") - before}

    def picture(self):
        """One tile through the vision tower and the projector, as when an answer is generated."""
        size = self.vita.config.vision.image_size
        pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(), self.vita.generation_products():
            start = CLOCK()
            self.vita.encode_images(pixels)
        return {"tile_s": CLOCK() - start}

    def sound(self, frames):
        """A sound of so many frames through the audio encoder, as when an answer is generated."""
        bank = torch.randn(1, frames, 80, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode(), self.vita.generation_products():
            start = CLOCK()
            self.vita.encode_audios(bank, [frames])
        return {"sound_s": CLOCK() - start}

    def speak(self, words, count):
        """A sentence: its codec tokens alone, the vocoder alone, and both as a stream that may be split anywhere."""
        speech, start = self.vita.speech, CLOCK()
        embeds = self.vita.embed(torch.arange(words)).float()
        codes = [*speech.tokens(embeds, max_tokens=count)]
        decoded = CLOCK()
        sound_s = len(speech.vocode(codes)) / speech.sample_rate
        vocoded, times = CLOCK(), []
        for _ in speech.stream(embeds, max_tokens=count, threshold=2.0):  # sound is in -1..1, so all of it is below
            times.append(CLOCK())
        figures = {"tokens": len(codes) / (decoded - start), "sound_s": sound_s, "vocode_s": vocoded - decoded}
        return figures | {"first_s": times[0] - vocoded, "stream_s": times[-1] - vocoded}


class Theirs:
    """transformers, with its own scaled-dot-product attention and its own cache."""

    def __init__(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        logging.disable_progress_bar()
        self.library, self.tokenizers, self.imports = AutoModelForCausalLM, AutoTokenizer, resident("VmRSS")

    def load(self, folder, dtype):
        start = CLOCK()
        from transformers.models.qwen2 import modeling_qwen2  # noqa: F401 (else from_pretrained imports it)

        imported = CLOCK()
        model = self.library.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        model.generation_config.eos_token_id, self.model = None, model
        self.tokenizer = self.tokenizers.from_pretrained(folder)  # as ours does
        return {"late_s": imported - start, "load_s": CLOCK() - imported}

    def tokens(self, prompt, batch, new):
        ids, watch = prompt_ids(batch, prompt, self.model.config.vocab_size), Watch()
        options = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        with torch.inference_mode():
            start = CLOCK()
            self.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=watch, **options)
        return rates(start, watch.times[1:], batch, prompt, new)  # the first item is the prompt

    memory = Ours.memory


class Watch:
    """A streamer for transformers that records the time of each token."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(CLOCK())

    def end(self):
        pass


class Limits:
    """The machine without a model."""

    def __init__(self):
        self.big = None

    def bus(self, megabytes):
        """Bytes/s of a sum over more memory than fits in a cache."""
        if self.big is None:
            self.big = torch.ones(megabytes << 18)  # float32; pages of zeros would not be allocated
        return {"bytes_per_s": self.big.nbytes / best(self.big.sum, 5)}

    def matmul(self, dtype, side):
        """Floating-point operations/s of a square product."""
        a, b = torch.randn(2, side, side).to(getattr(torch, dtype))
        return {"flops": 2 * side**3 / best(lambda: a @ b, 3)}


def best(work, times):
    """Seconds of the fastest of several runs."""
    took = []
    for _ in range(times):
        start = CLOCK()
        work()
        took.append(CLOCK() - start)
    return min(took)


class Side:
    """The parent's end: starts a process of this file, which does one task at a time."""

    def __init__(self, who, threads):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.who = who
        self.process = subprocess.Popen([sys.executable, __file__, who, str(threads)], env=environment, **pipes)

    def ask(self, task, *arguments):
        """The figures of a task. Raises: RuntimeError if the process ended during it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([task, arguments]) + "\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the side {self.who!r} ended during {task}{arguments}; its error is printed above")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


SIDES = {"ours": Ours, "theirs": Theirs, "limits": Limits}


def main():
    who, threads = sys.argv[1:]
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what libraries print must not mix with the answers
    torch.set_num_threads(int(threads))
    side = SIDES[who]()
    for line in sys.stdin:
        task, arguments = json.loads(line)
        print(json.dumps(getattr(side, task)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
