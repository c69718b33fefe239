"""From a sound file to a log-mel filter bank, which is all that the ear ever sees.

    load_sound   a file of any kind     -> waveform [C, W] in -1..1, at the file's own rate
    log_mel      its first channel      -> 16 kHz -> 25 ms of sound every 10 ms -> 80 log energies each

The figures are Kaldi's: speech features are only as good as their agreement with those that the
encoder was trained on. C channels, W samples, T frames, M mel bins; R samples in a frame (400),
Z frequencies in its spectrum (257).

Test: ``pytest tests/test_fbank.py``
"""

import os
from pathlib import Path

import torch
from torch.nn.functional import pad

FULL_SCALE = 32768.0  # Kaldi counts in 16-bit steps
PRE_EMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz; the upper end is half the sample rate
FLOOR = torch.finfo(torch.float32).eps  # of an energy, so that silence has a logarithm
FRAME_BLOCK = 8192  # frames at a time: an hour of sound needs no more memory at once than 80 s


def load_sound(source):
    """Reads a sound file (wav, flac, ogg, mp3), given as a path or as a binary file object.

    Shapes: -> ([C, W] float32 in -1..1, sample rate in Hz)
    Raises: ValueError where there is no file, no sound that can be decoded, or no sample in it.
    """
    try:
        import soundfile
    except ImportError:
        raise ValueError("reading sound files needs soundfile: pip install soundfile") from None
    is_path = isinstance(source, (str, os.PathLike))
    name = str(source) if is_path else "the sound"
    if is_path and not Path(source).is_file():
        raise ValueError(f"there is no sound file {name}")
    try:
        samples, sample_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name in .raw
        raise ValueError(f"{name} does not decode as wav, flac, ogg or mp3: {error}") from None
    if not len(samples):
        raise ValueError(f"{name} holds no samples")
    return torch.from_numpy(samples.T.copy()), sample_rate


def log_mel(waveform, sample_rate, *, num_mel_bins=80, frame_length=25.0, frame_shift=10.0, target_rate=16000):
    """Kaldi's log-mel filter bank of a sound; no rows where it is shorter than one frame.

    Shapes: [C, W] float in -1..1 -> [T, M] float32
    Units: frame_length and frame_shift in milliseconds, rates in Hz.
    Raises: ValueError where the waveform is not of that form.
    Source: ``kaldi.fbank`` as whale/init_model.py calls it, without dither.
    """
    waveform = torch.as_tensor(waveform)
    if waveform.dim() != 2 or not len(waveform) or not waveform.is_floating_point():
        raise ValueError(
            f"waveform must be [channels, samples] of floats in -1..1, got {waveform.dtype} {list(waveform.shape)}"
        )
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be above 0 Hz, got {sample_rate}")
    samples = waveform[0].detach().float().cpu()  # quirk: the other channels are not heard
    if sample_rate != target_rate and len(samples):
        samples = _resample(samples, sample_rate, target_rate)
    size, shift = int(target_rate * frame_length / 1000), int(target_rate * frame_shift / 1000)
    if len(samples) < size:
        return torch.zeros(0, num_mel_bins)
    frames = samples.unfold(0, size, shift)  # [T, R]
    window = torch.hann_window(size, periodic=False).pow(0.85)  # [R]
    bank = _mel_bank(num_mel_bins, _spectrum_size(size), target_rate)  # [Z, M]
    return torch.cat([_log_energies(block, window, bank) for block in frames.split(FRAME_BLOCK)])


def _resample(samples, sample_rate, target_rate):
    try:
        import soxr
    except ImportError:
        raise ValueError(f"resampling {sample_rate} Hz to {target_rate} Hz needs soxr: pip install soxr") from None
    return torch.from_numpy(soxr.resample(samples.numpy(), sample_rate, target_rate, quality="HQ"))


def _log_energies(frames, window, bank):
    frames = frames * FULL_SCALE  # [T, R]
    frames = frames - frames.mean(1, keepdim=True)  # [T, R]
    before = pad(frames, (1, 0), mode="replicate")[:, :-1]  # [T, R]
    frames = (frames - PRE_EMPHASIS * before) * window  # [T, R]
    power = torch.fft.rfft(frames, n=_spectrum_size(len(window))).abs().square()  # [T, Z]
    return (power @ bank).clamp(min=FLOOR).log()


def _spectrum_size(size):
    """The length of the Fourier transform: the next power of two."""
    return 1 << (size - 1).bit_length()


def _mel(hertz):
    return 1127.0 * torch.log1p(hertz / 700.0)


def _mel_bank(num_mel_bins, fft_size, sample_rate):
    """Triangles that overlap by half, equally wide in mel: the weight of each frequency in each bin."""
    hertz = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)  # [Z]
    low, high = _mel(torch.tensor([LOW_FREQUENCY, sample_rate / 2], dtype=torch.float64))
    step = (high - low) / (num_mel_bins + 1)  # from one centre to the next
    centres = low + step * torch.arange(1, num_mel_bins + 1)  # [M]
    distance = (_mel(hertz)[:, None] - centres).abs()  # [Z, M]
    return (1 - distance / step).clamp(min=0).float()
