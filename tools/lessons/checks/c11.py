"""The check of lesson 11, the mel filter bank and the subsampling."""

import functools
import math
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref import fbank
from vita_ref.audio import Subsampling

RATE, SIZE, SHIFT, FFT, FLOOR = 16000, 400, 160, 512, torch.finfo(torch.float32).eps


def mel_bank(bins, fft_size, sample_rate):
    return fbank._mel_bank(bins, fft_size, sample_rate)


def log_mel(samples, bank):
    return fbank.log_mel(samples[None], RATE, num_mel_bins=bank.shape[1])


def subsample(x, w1, b1, w2, b2, w3, b3):
    made = Subsampling(SimpleNamespace(subsampling_size=len(b1), num_mel_bins=x.shape[2]))
    layers = (made.conv[0], w1, b1), (made.conv[2], w2, b2), (made.out[0], w3, b3)
    for layer, weight, bias in layers:
        layer.weight.data, layer.bias.data = weight, bias
    return made(x).detach()


@functools.cache
def tones():
    """0.1 s of two tones, a little noise, and a constant."""
    t = torch.arange(1600) / RATE
    return 0.3 * (2 * math.pi * 440 * t).sin() + 0.1 * (2 * math.pi * 3000 * t).sin() + 0.01 * randn(1600) + 0.2


def weights():
    return randn(3, 1, 3, 3, seed=1), randn(3, seed=2), randn(3, 3, 3, 3, seed=3), randn(3, seed=4), randn(3, 6, seed=5), randn(3, seed=6)


def mel(hertz):
    return 1127 * math.log1p(hertz / 700)


def by_hand():
    """The bank of 4 bins and 9 frequencies, number by number."""
    low, high = mel(20), mel(8000)
    step = (high - low) / 5
    rows = [[max(0.0, 1 - abs(mel(1000 * f) - (low + step * (m + 1))) / step) for m in range(4)] for f in range(9)]
    return torch.tensor(rows)


def cases():
    bank = mel_bank(10, FFT, RATE)
    return [
        Case("4 bins of 9 frequencies, computed by hand", "mel_bank", lambda my: my.mel_bank(4, 16, RATE), by_hand(), 1e-4),
        Case("80 bins of 257 frequencies", "mel_bank", lambda my: my.mel_bank(80, FFT, RATE), None, 1e-4),
        Case("1 s gives 98 frames, 399 samples give none", "log_mel",
             lambda my: (my.log_mel(torch.ones(RATE), bank).shape[0], len(my.log_mel(torch.ones(560), bank)), len(my.log_mel(torch.ones(559), bank))),
             (98, 2, 1)),
        Case("silence gives the logarithm of the floor", "log_mel", lambda my: my.log_mel(torch.zeros(500), bank), torch.full((1, 10), math.log(FLOOR))),
        Case("two tones", "log_mel", lambda my: my.log_mel(tones(), bank), None, 1e-4),
        Case("12 frames of 11 bins give 2 positions", "subsample", lambda my: my.subsample(randn(2, 12, 11), *weights())),
    ]  # fmt: skip


def bank_with(bins, fft_size, sample_rate, scale=mel, low=20.0, edges=False, root=1):
    hertz = [sample_rate / 2 * i / (fft_size // 2) for i in range(fft_size // 2 + 1)]
    first, last = scale(low), scale(sample_rate / 2)
    step = (last - first) / (bins - 1 if edges else bins + 1)
    centres = [first + step * (m if edges else m + 1) for m in range(bins)]
    return torch.tensor([[max(0.0, 1 - abs(scale(f) - c) / step) for c in centres] for f in hertz]) ** root


def log_with(samples, bank, full=32768.0, mean=True, emphasis=0.97, hann=0.85, periodic=False, power=2, log=torch.log, floor=FLOOR,
             center=False, window=True):  # fmt: skip
    if center:
        samples = F.pad(samples[None], (SIZE // 2, SIZE // 2), mode="reflect")[0]
    frames = samples.unfold(0, SIZE, SHIFT) * full
    frames = frames - frames.mean(1, keepdim=True) if mean else frames
    before = F.pad(frames, (1, 0), mode="replicate")[:, :-1]
    frames = frames - emphasis * before
    frames = frames * torch.hann_window(SIZE, periodic=periodic).pow(hann) if window else frames
    spectrum = torch.fft.rfft(frames, n=FFT).abs() ** power
    return log((spectrum @ bank).clamp(min=floor))


def with_log(**options):
    return {"log_mel": lambda *a: log_with(*a, **options)}


def with_bank(**options):
    return {"mel_bank": lambda *a: bank_with(*a, **options)}


def convolved(x, w1, b1, w2, b2, w3, b3, padding=0, relu=True, swap=False, flat="channels", both=True):
    x = x[:, None].mT if swap else x[:, None]
    x = F.conv2d(x, w1, b1, 2, padding)
    x = F.conv2d(x.relu() if relu else x, w2, b2, 2, padding)
    x = x.relu() if both and relu else x
    x = x.transpose(1, 2) if flat == "channels" else x.permute(0, 2, 3, 1)
    return x.flatten(2) @ w3.T + b3


def with_subsample(**options):
    return {"subsample": lambda *a: convolved(*a, **options)}


LESSON = Lesson(
    11, "sound", "mel filter bank and subsampling", {"mel_bank": mel_bank, "log_mel": log_mel, "subsample": subsample}, cases,
    (
        Mistake("bins equally wide in hertz", "the triangles are equally spaced in hertz. They should be in mel.",
                "compute mel of every frequency, and centres in equal steps of mel.", with_bank(scale=lambda f: f)),
        Mistake("bins from 0 Hz", "the lowest bin begins at 20 Hz.", "let the mel scale begin at mel(20).", with_bank(low=0.0)),
        Mistake("centres at the ends", "the first centre is 20 Hz itself. The ends are the feet of the first and last triangle.",
                "divide the mel range by M + 1; the first centre is one step above the lower end.", with_bank(edges=True)),
        Mistake("samples in -1..1", "Kaldi works on 16-bit numbers: every energy lacks ln(32768^2) = 20.8.", "multiply the samples by 32768.",
                with_log(full=1.0)),
        Mistake("the frame's mean kept", "a constant in the sound counts as a low tone.", "subtract the mean of each frame.", with_log(mean=False)),
        Mistake("pre-emphasis forgotten", "low pitches are too loud.", "subtract 0.97 times the sample before.", with_log(emphasis=0.0)),
        Mistake("window forgotten", "the ends of a frame are hard edges, which are heard at every pitch.", "multiply by the window.", with_log(window=False)),
        Mistake("the plain Hann window", "Kaldi's window is the Hann window to the power 0.85.", "raise the window to the power 0.85.", with_log(hann=1.0)),
        Mistake("the periodic Hann window", "torch's default is periodic. Kaldi's is symmetric.", "pass periodic=False.", with_log(periodic=True)),
        Mistake("amplitude instead of power", "all numbers are about half as large.", "square the amplitudes.", with_log(power=1)),
        Mistake("logarithm to the base 10", "all numbers are 2.3 times too small.", "take the natural logarithm.", with_log(log=torch.log10)),
        Mistake("floor forgotten", "the logarithm of silence is minus infinity.", "take at least 1.1920929e-07 before the logarithm.", with_log(floor=0.0)),
        Mistake("padded ends", "frames were centred on their samples, as in torch.stft. Only complete frames count.",
                "cut frames from sample 0 on, without padding.", with_log(center=True)),
        Mistake("padded convolutions", "with padding there are more positions.", "use padding 0.", with_subsample(padding=1)),
        Mistake("ReLU forgotten", "two convolutions without anything between them are one.", "apply a ReLU after each convolution.", with_subsample(relu=False)),
        Mistake("second ReLU forgotten", "there is a ReLU after each of the two convolutions.", "apply it after the second one too.",
                with_subsample(both=False)),
        Mistake("bins outside, channels inside", "channels and bins were joined in the wrong order.",
                "from [N, C, P, bands] go to [N, P, C, bands], then join the last two.", with_subsample(flat="bins")),
        Mistake("time and bins swapped", "frames and bins changed places.", "the picture that is convolved is [N, 1, J, M].", with_subsample(swap=True)),
    ),
    {"mel_bank": "mel of each frequency; M centres between mel(20) and mel(half the rate) in M + 1 equal steps; 1 - |difference| / step, at "
                 "least 0.",
     "log_mel": "unfold to [J, 400]; * 32768; - mean; - 0.97 * the sample before; * window; rfft of 512; square; @ bank; at least the floor; log.",
     "subsample": "add a channel; convolution, ReLU, convolution, ReLU; transpose to [N, P, C, bands]; join; linear."},
    ("filter bank",),
)  # fmt: skip
