"""Lesson 11: the mel filter bank, and the encoder's subsampling.

A second of sound is 16,000 numbers, far too many for positions of a transformer. It is cut into overlapping frames: 400 samples
(25 ms), a new frame every 160 samples (10 ms), only frames that are complete. Of each frame one wants to know how much energy it
has at which frequency. A Fourier transform gives the power (the squared amplitude) at 257 frequencies. The ear tells low
frequencies apart finely and high ones coarsely, so the frequencies are summed in M bins that are equally wide on the mel scale,
mel(f) = 1127 * ln(1 + f / 700), from 20 Hz to half the sample rate. A bin is a triangle: 1 at its centre, falling to 0 at the
centres of its neighbours, linear in mel. Then the natural logarithm is taken, because loudness is heard in ratios.

The encoder was trained on features of Kaldi, so its details matter. For each frame, in this order: samples times 32768; minus the
frame's mean; pre-emphasis, x[t] - 0.97 * x[t-1], where the first sample stands for the one before it; times a window, the symmetric
Hann window to the power 0.85; Fourier transform of size 512; power; bins; logarithm of at least 1.1920929e-07 (silence).

100 frames a second are still many. Two convolutions, 3 x 3 with stride 2 and without padding, over time and bins, leave a quarter:
P = (J - 3) // 4. After each comes a ReLU. What is left of channels and bins is joined to one row (the channels outside, the bins
inside) and goes through a linear map.

    10 s: 160,000 samples, (160000 - 400) // 160 + 1 = 998 frames, (998 - 3) // 4 = 248 positions
    mel(700) = 1127 ln 2 = 781.2       mel(1400) = 1127 ln 3 = 1238.1: twice the frequency, not twice the mel

    samples ---- 400 ----|                    1 |   /\\  /\\  /\\
    frame 0 [............]                      |  /  \\/  \\/  \\      bins over mel
    frame 1     [............]                  | /   /\\  /\\   \\
            160                               0 +-------------------> mel

To do: write `mel_bank`, `log_mel` and `subsample`. Then run:  python tools/lessons/run.py 11
"""

import torch


def mel_bank(bins: int, fft_size: int, sample_rate: int) -> torch.Tensor:
    """The weight of each frequency in each bin: [fft_size / 2 + 1, bins] float32. The frequencies go from 0 to half the sample rate
    in equal steps. Their lower end of 20 Hz and their upper end, half the sample rate, are bins 0 and M + 1, which are not used:
    the M centres lie between them, in equal steps of mel."""
    raise NotImplementedError


def log_mel(samples: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """samples [W] float32 in -1..1 at 16 kHz; bank [257, M] as mel_bank gives it -> [J, M] float32"""
    raise NotImplementedError


def subsample(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor, w3: torch.Tensor, b3: torch.Tensor
) -> torch.Tensor:
    """x [N, J, M], a channel to be added; w1 [C, 1, 3, 3] and b1 [C]; w2 [C, C, 3, 3] and b2 [C]; w3 [C, C * bands] and b3 [C], where
    bands is what is left of M -> [N, P, C]. You may use torch.nn.functional.conv2d."""
    raise NotImplementedError
