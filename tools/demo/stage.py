"""One stage of training: a schedule of steps that saves, goes on where it stopped, and reports.

A step's batch and all its chance come from the seed, the stage and the number of the step alone, so a run that was
stopped goes on with the same bits as one that was not. SIGTERM saves and ends; SIGSTOP and SIGCONT do no harm.

Test: ``pytest tests/tools/test_train.py``
"""

import contextlib
import fcntl
import itertools
import random
import signal
import time
import zlib

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, Subset

WARM_UP, REPORT, SAVE_SECONDS = 100, 20, 180  # steps, steps, seconds


class Stopped(Exception):
    """Somebody asked the run to end; its state is saved."""


def seed_of(*parts):
    """A number for any seed, stage and step."""
    return zlib.crc32(" ".join(map(str, parts)).encode())


class Batches(Dataset):
    """``batches[step]`` is what ``make(rng, step)`` gives, with all chance from the seed, the stage and the step."""

    def __init__(self, make, name, seed, steps):
        self.make, self.name, self.seed, self.steps = make, name, seed, steps

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        torch.manual_seed(seed_of("batch", self.seed, self.name, step))
        return self.make(random.Random(f"{self.seed} {self.name} {step}"), step)

    def since(self, first, workers):
        """Batches in order from a step on; ``workers`` processes prepare them, 0 is this one."""
        if not workers:
            return (self[step] for step in range(first, self.steps))
        rest = Subset(self, range(first, self.steps))
        return iter(DataLoader(rest, batch_size=None, num_workers=workers, prefetch_factor=4))


@contextlib.contextmanager
def locked(path):
    """Waits until no other process trains this stage in the same folder."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def precision(device):
    """Products in bfloat16 where the processor has them, else in float32."""
    cpu = torch.backends.cpu.get_cpu_capability()
    fast = device.type != "cpu" or (cpu == "AVX512" and torch.cpu._is_avx512_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16) if fast else contextlib.nullcontext()


class Stage:
    """AdamW over some parameters: the rate rises over WARM_UP steps, then falls to zero in a straight line."""

    def __init__(self, name, work, model, parts, steps, rate, seed=0):
        self.name, self.path, self.model = name, work / f"{name}.pt", model
        self.steps, self.rate, self.seed, self.first = steps, rate, seed, 0
        chosen = [p for name, p in model.named_parameters() if name.split(".")[0] in parts]
        self.parameters = [p for p in chosen if p.requires_grad]
        self.device = chosen[0].device
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
        self.log, self.started, self.saved_at = [], time.monotonic(), time.monotonic()

    def resume(self):
        """Goes on from the last save, if there is one."""
        if self.path.exists():
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.first = saved["step"]
        return self

    @property
    def done(self):
        return self.first >= self.steps

    def run(self, batches, losses, check=None, every=500):
        """``losses(batch)`` gives the losses to add, by name with their weights; ``check()`` text for the log."""
        stop = []
        before = signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        try:
            for step, batch in zip(range(self.first, self.steps), batches):
                self._step(step, batch, losses)
                if step % REPORT == REPORT - 1:
                    self._report(step)
                self.first = step + 1
                if self.done or stop or time.monotonic() - self.saved_at > SAVE_SECONDS:
                    self.save()
                if check and (step % every == every - 1 or self.done):
                    print(f"{self.name} {step + 1} {check()}", flush=True)
                if stop:
                    raise Stopped(f"{self.name} stopped and saved after step {step + 1}")
        finally:
            signal.signal(signal.SIGTERM, before)

    def _step(self, step, batch, losses):
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (step + 1) / WARM_UP) * (1 - step / self.steps)
        torch.manual_seed(seed_of("step", self.seed, self.name, step))
        # the plain attention: on a CPU the backward of torch's own is slower
        plain = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else contextlib.nullcontext()
        with precision(self.device), plain:
            parts = losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        sum(loss * weight for loss, weight in parts.values()).backward()
        if nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite():  # else one bad batch would undo the run
            self.optimiser.step()
        self.log.append({k: loss.item() for k, (loss, _) in parts.items()})

    def _report(self, step):
        done = len(self.log)
        left = (self.steps - step - 1) * (time.monotonic() - self.started) / done / 60
        names = dict.fromkeys(itertools.chain(*self.log))
        values = {k: [entry[k] for entry in self.log if k in entry] for k in names}
        means = " ".join(f"{k} {sum(v) / len(v):.4f}" for k, v in values.items())
        print(f"{self.name} {step + 1}/{self.steps} {means} | {left:.0f} min left", flush=True)
        self.log, self.started = [], time.monotonic()

    def save(self):
        kept = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "step": self.first}
        torch.save(kept, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
        self.saved_at = time.monotonic()


def share(marks):
    """Text of how many % are right by name, from (name, whether right) pairs."""
    names = {}
    for name, right in marks:
        names.setdefault(name, []).append(right)
    return " ".join(f"{name} {100 * sum(v) / len(v):.0f}" for name, v in sorted(names.items()))
