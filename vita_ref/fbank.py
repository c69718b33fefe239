"""From a sound file to a log-mel filter bank, the input of the audio encoder.

    load_sound   file                  -> waveform [C, W] in -1..1, at the sample rate of the file
    log_mel      the first channel     -> 16 kHz -> a frame of 25 ms every 10 ms -> 80 log energies each: [J, 80]

The definitions are those of Kaldi, on whose features the encoder was trained. Ten seconds give J = 998 frames.

C channels, W samples, J frames, M mel bins; window (400) samples of a frame, bands (257) of its spectrum.

Test: ``pytest tests/test_fbank.py``
"""

import os
from typing import BinaryIO

import torch
from torch.nn.functional import pad

from .files.sounds import (
    check_frames,
    check_length,
    check_samples,
    read_sound,
)

FULL_SCALE = 32768.0  # Kaldi works on 16-bit integers
PRE_EMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz, the lower end of the first mel bin; the last one ends at half the sample rate
FLOOR = torch.finfo(torch.float32).eps  # the smallest energy, so that the logarithm of silence is finite
BLOCK = 1 << 22  # numbers of a spectrum that are computed at once, to limit the memory: 8192 frames (82 s) of 512


def load_sound(source: str | os.PathLike | BinaryIO) -> tuple[torch.Tensor, int]:
    """Reads a sound file (wav, flac, ogg or mp3), given as a path or as a binary file object.

    Shapes: -> [C, W] float32 in -1..1, and the sample rate in Hz
    Raises: ValueError if the file is missing, damaged, cut off or too long, or has samples that are not finite.
    """
    samples, sample_rate = read_sound(source)
    return torch.from_numpy(samples), sample_rate


def log_mel(
    waveform: torch.Tensor, sample_rate: float, *, num_mel_bins: int = 80, frame_length: float = 25.0,
    frame_shift: float = 10.0, target_rate: int = 16000,
) -> torch.Tensor:  # fmt: skip
    """Kaldi's log-mel filter bank of a sound. A sound shorter than one frame gives no rows.

    Shapes: [C, W] float in -1..1 -> [J, M] float32
    Units: frame_length and frame_shift in milliseconds, rates in Hz.
    Raises: ValueError if the waveform has another shape or dtype, is too long, or has samples that are not finite.
    Source: ``kaldi.fbank`` as upstream whale/init_model.py:36-60 calls it, without dither.
    """
    samples = _first_channel(waveform, sample_rate)
    if sample_rate != target_rate and len(samples):
        samples = _resample(samples, sample_rate, target_rate)
    size, shift = int(target_rate * frame_length / 1000), int(target_rate * frame_shift / 1000)
    if len(samples) < size:
        return torch.zeros(0, num_mel_bins)
    frames = samples.unfold(0, size, shift)  # [J, window]
    check_frames(len(frames), _fft_size(size))
    window = torch.hann_window(size, periodic=False).pow(0.85)  # [window]
    bank = _mel_bank(num_mel_bins, _fft_size(size), target_rate)  # [bands, M]
    return torch.cat([_log_energies(block, window, bank) for block in frames.split(max(1, BLOCK // _fft_size(size)))])  # [J, M]


def _first_channel(waveform, sample_rate):
    """The samples of the first channel, [W] float32 on the CPU, after checking both arguments."""
    waveform = torch.as_tensor(waveform)
    if waveform.dim() != 2 or not len(waveform) or not waveform.is_floating_point() or waveform.is_meta:
        got = f"{waveform.dtype} {list(waveform.shape)} on {waveform.device}"
        raise ValueError(f"waveform must be [channels, samples] of floats in -1..1, got {got}")
    check_length(waveform.shape[1], sample_rate, channels=1)
    check_samples(waveform[0])
    return waveform[0].detach().float().cpu()  # quirk: channels after the first are ignored, as in upstream


def _resample(samples, sample_rate, target_rate):
    try:
        import soxr
    except ImportError:
        raise ValueError(f"resampling {sample_rate} Hz to {target_rate} Hz needs soxr: pip install soxr") from None
    return torch.from_numpy(soxr.resample(samples.numpy(), sample_rate, target_rate, quality="HQ"))


def _log_energies(frames, window, bank):
    """[J, window] samples -> [J, M] log energies."""
    frames = frames * FULL_SCALE  # [J, window]
    frames = frames - frames.mean(1, keepdim=True)  # [J, window]
    previous = pad(frames, (1, 0), mode="replicate")[:, :-1]  # [J, window]
    frames = (frames - PRE_EMPHASIS * previous) * window  # [J, window]
    power = torch.fft.rfft(frames, n=_fft_size(len(window))).abs().square()  # [J, bands]
    return (power @ bank).clamp(min=FLOOR).log()  # [J, M]


def _fft_size(size):
    """The next power of two: 512 for 400 samples."""
    return 1 << (size - 1).bit_length()


def _mel_bank(num_mel_bins, fft_size, sample_rate):
    """The weight of each frequency in each mel bin: a triangle between the centres of the bins before and after it."""
    hertz = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)  # [bands]
    low, high = _mel(torch.tensor([LOW_FREQUENCY, sample_rate / 2], dtype=torch.float64))
    step = (high - low) / (num_mel_bins + 1)  # between neighbouring centres
    centres = low + step * torch.arange(1, num_mel_bins + 1)  # [M]
    distance = (_mel(hertz)[:, None] - centres).abs()  # [bands, M]
    return (1 - distance / step).clamp(min=0).float()  # [bands, M]


def _mel(hertz):
    return 1127.0 * torch.log1p(hertz / 700.0)
