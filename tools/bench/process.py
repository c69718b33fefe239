"""One side of a measurement, in a process of its own: `bench.py` starts it and asks it one task at a time.

    python tools/bench_second.py WHO THREADS      WHO: ours, theirs (transformers) or limits (the machine)

A task is a line of JSON on standard input, [name, [arguments]]; the answer is a line of JSON on standard
output. A side imports what its user would before the first task, so ``memory`` knows what is not the model's;
what transformers imports only as it loads is timed apart (``late_s``). Linux only: memory is read from /proc.

Test: ``pytest tests/test_bench.py``
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
    """A figure of this process in bytes: ``VmRSS``, what is in memory now, or ``VmHWM``, the most there ever was."""
    return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def prompt_ids(batch, length, vocabulary):
    """The same random prompts for everyone, [batch, length] long."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(1))


def rates(start, times, batch, prompt, new):
    """From the moments at which a generation's tokens came: seconds to the first, and tokens/s of both stages."""
    if len(times) != new:
        raise RuntimeError(f"{len(times)} tokens came, expected {new}")
    first = times[0] - start
    decode = batch * (new - 1) / (times[-1] - times[0]) if new > 1 else 0.0
    return {"first_s": first, "prefill": batch * prompt / first, "decode": decode}


class Ours:
    """vita_ref, used as its users do."""

    def __init__(self):
        import vita_ref

        self.library, self.imports = vita_ref.Vita, resident("VmRSS")

    def load(self, folder, dtype, option=None):
        start, given = CLOCK(), {None: {}, "int8": {"quantize": "int8"}, "packed": {"pack": True}}[option]
        self.vita = self.library.from_pretrained(folder, dtype=getattr(torch, dtype), **given)
        return {"late_s": 0.0, "load_s": CLOCK() - start}

    def tokens(self, prompt, batch, new):
        ids, times = prompt_ids(batch, prompt, self.vita.config.decoder.vocab_size), []
        start = CLOCK()
        self.vita.generate(ids, max_new_tokens=new, eos_token_id=(), stream=lambda _: times.append(CLOCK()))
        return rates(start, times, batch, prompt, new)

    def memory(self):
        return {"imports": self.imports, "peak": resident("VmHWM")}

    def picture(self):
        """A tile through the eye and the projector."""
        size = self.vita.config.vision.image_size
        pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            start = CLOCK()
            self.vita.encode_images(pixels)
        return {"tile_s": CLOCK() - start}

    def speak(self, words, count):
        """A sentence: its tokens alone, their sound alone, and both as a stream, every chunk quiet enough to be cut."""
        speech, start = self.vita.speech, CLOCK()
        embeds = self.vita.embed(torch.arange(words)).float()
        said = [*speech.tokens(embeds, max_tokens=count)]
        told = CLOCK()
        sound_s = len(speech.vocode(said)) / speech.sample_rate
        heard, times, begun = CLOCK(), [], CLOCK()
        for _ in speech.stream(embeds, max_tokens=count, threshold=2.0):  # sound is in -1..1
            times.append(CLOCK())
        found = {"tokens": len(said) / (told - start), "sound_s": sound_s, "vocode_s": heard - told}
        return found | {"first_s": times[0] - begun, "stream_s": times[-1] - begun}


class Theirs:
    """transformers, with its own scaled-dot-product attention, its own cache, and the file's or the asked dtype."""

    def __init__(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        logging.disable_progress_bar()
        self.library, self.tokenizers, self.imports = AutoModelForCausalLM, AutoTokenizer, resident("VmRSS")

    def load(self, folder, dtype):
        start = CLOCK()
        from transformers.models.qwen2 import modeling_qwen2  # noqa: F401, or the next line would

        imported = CLOCK()
        model = self.library.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        model.generation_config.eos_token_id, self.model = None, model
        self.tokenizer = self.tokenizers.from_pretrained(folder)  # as ours does: who asks a question needs it
        return {"late_s": imported - start, "load_s": CLOCK() - imported}

    def tokens(self, prompt, batch, new):
        ids, watch = prompt_ids(batch, prompt, self.model.config.vocab_size), Watch()
        options = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "pad_token_id": 0}
        with torch.inference_mode():
            start = CLOCK()
            self.model.generate(ids, attention_mask=torch.ones_like(ids), streamer=watch, **options)
        return rates(start, watch.times[1:], batch, prompt, new)  # the first put is the prompt

    memory = Ours.memory


class Watch:
    """What transformers calls a streamer: notes when something comes."""

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
        """Bytes/s of a plain sum over memory that no cache holds."""
        if self.big is None:
            self.big = torch.ones(megabytes << 18)  # float32; zeros would be pages that are not there
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
    """The other end: a process of this file, that does one task at a time."""

    def __init__(self, who, threads):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.who = who
        self.process = subprocess.Popen([sys.executable, __file__, who, str(threads)], env=environment, **pipes)

    def ask(self, task, *arguments):
        """What the side answers, a dict of figures. Raises: RuntimeError where it died of the task."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([task, arguments]) + "\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the side {self.who!r} ended at {task}{arguments}; its error stands above")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


SIDES = {"ours": Ours, "theirs": Theirs, "limits": Limits}


def main():
    who, threads = sys.argv[1:]
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # a library's chatter is no answer
    torch.set_num_threads(int(threads))
    side = SIDES[who]()
    for line in sys.stdin:
        task, arguments = json.loads(line)
        print(json.dumps(getattr(side, task)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
