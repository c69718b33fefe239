"""The codec's second half: tokens become sound. Also the two things done to sound here, cutting and stretching.

    tokens [B, U] -> code book rows [B, 512, U] -> generator -> waveform [B, W], W = U * hop

A code book gives each token a column; a second set of books gives the voice, one vector for the whole
sound. The generator (HiFi-GAN, Kong et al. 2020) widens time stage by stage, and each stage's residual
blocks look a little to both sides: `Vocoder.reach` says how far in all, so that a sound made in parts
with that much context on either side is the sound made at once.

Letters: B batch, U codec tokens, C channels, W samples of sound.

Test: ``pytest tests/test_vocoder.py``
"""

import torch
from torch import nn
from torch.nn import functional as F

CODE_SIZE, VOICE_SIZE = 512, 128  # widths of a token's column and of the voice
SLOPE = 0.1  # of every leaky ReLU; quirk: before conv_post too, where HiFi-GAN has 0.01


def book(rows, size):
    """A code book, under the name that the checkpoint has for its table."""
    return nn.ModuleDict({"embedding": nn.Embedding(rows, size)})


class Quantizer(nn.Module):
    """The code books: one for the tokens, and some that make up the voice.

    Source: upstream's vqvae.py and ticodec/models.py; prefix ``quantizer.``
    """

    def __init__(self, config):
        super().__init__()
        share = VOICE_SIZE // len(config.global_tokens)
        self.quantizer_modules = nn.ModuleList([book(config.n_codes, CODE_SIZE)])
        self.quantizer_modules_globaltokens = nn.ModuleList(book(config.n_codes, share) for _ in config.global_tokens)

    def columns(self, tokens):
        """[B, U] long -> [B, 512, U]."""
        return self.quantizer_modules[0]["embedding"](tokens).mT

    def voice(self, global_tokens):
        """[number of books] long -> [1, 128]."""
        books = self.quantizer_modules_globaltokens
        return torch.cat([b["embedding"](t) for b, t in zip(books, global_tokens)])[None]


class ResBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, each pair added to what came in."""

    def __init__(self, channels, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=kernel // 2 * d) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.reach = kernel // 2 * sum(d + 1 for d in dilations)  # samples that it looks to either side

    def forward(self, x):
        for wide, narrow in zip(self.convs1, self.convs2):
            x = x + narrow(F.leaky_relu(wide(F.leaky_relu(x, SLOPE)), SLOPE))  # [B, C, W]
        return x


class Generator(nn.Module):
    """Columns and voice to sound: stages that halve the channels and multiply the samples.

    ``margins[i]`` says how many samples of what comes into stage i, on either side of those that are
    wanted, can touch them. Context beyond that is let go of as soon as it has done its work: the first
    stages look far, the last ones, which have the most samples, hardly at all.

    Source: upstream's ticodec/models.py:182,224-242; prefix ``generator.``
    """

    def __init__(self, config):
        super().__init__()
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        channels, self.num_blocks = config.upsample_initial_channel, len(blocks)
        self.conv_pre = nn.Conv1d(CODE_SIZE, channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            self.resblocks.extend(ResBlock(channels, *block) for block in blocks)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

        margins = [3]  # of conv_post
        for i, up in reversed(list(enumerate(self.ups))):
            samples = margins[0] + max(block.reach for block in self.stage(i))
            margins.insert(0, (samples + up.padding[0] + up.stride[0] - 1) // up.stride[0])
        self.margins = margins

    def stage(self, i):
        """The residual blocks that work side by side behind the i-th widening."""
        return self.resblocks[i * self.num_blocks : (i + 1) * self.num_blocks]

    def forward(self, columns, voice, context=(0, 0)):
        """``context``: columns at the beginning and at the end that are there to be looked at, not to be heard.

        Shapes: columns [B, 512, U], voice [1, 128] -> [B, W] in -1..1.
        """
        x, spare = self.conv_pre(columns), context
        for i, up in enumerate(self.ups):
            x, spare = trim(x, spare, self.margins[i])
            x = up(F.leaky_relu(x, SLOPE))
            spare = [n * up.stride[0] for n in spare]
            x = sum(block(x) for block in self.stage(i)) / self.num_blocks
            if x.shape[1] == VOICE_SIZE:  # quirk: the voice joins at the stage that happens to be as wide, or nowhere
                x = x + voice[..., None]  # [B, 128, frames]
        x, spare = trim(x, spare, self.margins[-1])
        sound = torch.tanh(self.conv_post(F.leaky_relu(x, SLOPE)))  # [B, 1, W]
        return trim(sound, spare, 0)[0][:, 0]


def trim(x, spare, margin):
    """Cuts the spare samples at both ends of [B, C, W] down to a margin: (what is left, what is spare in it)."""
    kept = [min(n, margin) for n in spare]
    return x[..., spare[0] - kept[0] : x.shape[2] - (spare[1] - kept[1])], kept


class Vocoder(nn.Module):
    """Code books and generator."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.quantizer, self.generator = Quantizer(config), Generator(config)

    @property
    def reach(self):
        """How many tokens to either side of a token can touch its samples."""
        return self.generator.margins[0] + 3  # conv_pre

    @torch.no_grad()
    def forward(self, tokens, voice=None, context=(0, 0)):
        """Sound of codec tokens; ``voice`` is a list of global tokens (default: the codec's own).

        ``context``: how many tokens at the beginning and at the end are there only for the sake of the others.

        Shapes: tokens [B, U] long -> [B, W] float32 in -1..1, W = (U - context) * hop.
        Raises: ValueError where a token is no row of its code book, or the voice has another length.
        """
        own = self.config.global_tokens
        voice = own if voice is None else voice
        if isinstance(voice, str) or not all(isinstance(code, int) for code in voice):
            raise ValueError(f"voice must be a list of {len(own)} global tokens, got {voice!r}")
        voice = torch.tensor(voice, device=tokens.device)
        if len(voice) != len(own):
            raise ValueError(f"voice must be a list of {len(own)} global tokens, got {len(voice)}")
        for name, ids in (("tokens", tokens), ("voice", voice)):
            if ids.numel() and not 0 <= ids.min() <= ids.max() < self.config.n_codes:
                raise ValueError(
                    f"{name} must be codes of 0 to {self.config.n_codes - 1}, got {ids.min()} to {ids.max()}"
                )
        if tokens.shape[1] == 0:
            return torch.zeros(tokens.shape, device=tokens.device)
        return self.generator(self.quantizer.columns(tokens), self.quantizer.voice(voice), context).float()


def fold_weight_norm(tensors):
    """Replaces each pair ``weight_g``, ``weight_v`` by the ``weight`` that it stands for: g * v / |v|.

    The length |v| is that of each slice of the first axis. Source: Salimans & Kingma 2016, equation 2.
    """
    folded = dict(tensors)
    for name in tensors:
        weight = name.removesuffix("_g")
        if name.endswith(".weight_g") and f"{weight}_v" in tensors:
            g, v = folded.pop(name).float(), folded.pop(f"{weight}_v").float()
            if g.shape != (len(v), 1, 1) or v.dim() != 3:
                raise ValueError(f"{name} must be [n, 1, 1] for [n, c, k], got {list(g.shape)} for {list(v.shape)}")
            folded[weight] = v * (g / v.norm(dim=(1, 2), keepdim=True))
    return folded


def cut(held, sound, window, threshold):
    """Where to let go of a stream of sound: (what may be played, or None; what is held back for later).

    The quietest ``window`` samples in the second half of ``sound`` are looked for; where their mean |x|
    is below ``threshold``, the cut is at the quietest sample from there on.

    Shapes: held [any], sound [W] float32.
    Source: upstream's llm2tts.py:80-131.
    """
    whole = torch.cat([held, sound])
    if len(sound) < window:
        return None, whole
    loudness = sound.abs()  # [W]
    sums = F.pad(loudness.double().cumsum(0), (1, 0))
    means = (sums[window:] - sums[:-window]) / window
    start = len(sound) // 2 - window // 2
    least, quietest = means[start:].min(0)
    if least >= threshold:
        return None, whole
    start += int(quietest)
    end = start + int(quietest) + window  # quirk: quietest is counted twice, so more than the window is searched
    place = len(held) + start + int(loudness[start:end].argmin())
    return whole[:place], whole[place:]


def stretch(waveform, speed, *, frame=960, search=240):
    """The same sound faster (speed > 1) or slower, at the same pitch: waveform similarity overlap-add.

    Frames that overlap by half are set down every frame / 2 samples and taken every speed * frame / 2,
    each within ``search`` samples of there, where it goes on most like the frame before it.

    Shapes: [W] -> [round(W / speed)] float32.
    Units: frame and search in samples; the defaults are 40 ms and 10 ms at 24 kHz.
    Raises: ValueError where speed is not in 0.5 to 2.
    Source: Verhelst & Roelands 1993.
    """
    if not 0.5 <= speed <= 2:
        raise ValueError(f"speed must be 0.5 to 2.0, got {speed}")
    if speed == 1 or len(waveform) == 0:
        return waveform
    step, length = frame // 2, round(len(waveform) / speed)
    count = length // step + 2  # frame i is centred on sample i * step of what comes out
    front = step + search
    source = F.pad(waveform.float(), (front, int(count * step * speed) + frame + search - len(waveform)))
    window = torch.hann_window(frame, device=waveform.device)
    out = source.new_zeros(count * step + step)
    follows = 0  # where the frame before would go on
    for i in range(count):
        start = round(i * step * speed)  # of the search; with no shift the frame begins `search` later
        if i:
            near = source[start : start + frame + 2 * search]
            likeness = F.conv1d(near[None, None], source[None, None, follows : follows + frame])[0, 0]
            energy = F.avg_pool1d(near.square()[None, None], frame, 1)[0, 0]
            start += int((likeness * torch.rsqrt(energy + 1e-9)).argmax())
        else:
            start += search
        out[i * step : i * step + frame] += window * source[start : start + frame]
        follows = start + step
    return out[step : step + length]
