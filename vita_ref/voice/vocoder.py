"""The vocoder, which is the decoder of the codec: tokens to sound. Also functions that split and stretch sound.

    tokens [B, U] -> code book -> token vectors [B, 512, U] -> generator -> waveform [B, W], W = U * hop

One code book has a vector for each token. A second set of code books gives the voice embedding, one vector for the
whole sound. The generator (HiFi-GAN, Kong et al. 2020) upsamples in stages. Its convolutions look at neighbouring
tokens, at most `Vocoder.receptive_radius` on each side. So a sound that is made in parts, each with that much context,
equals the sound that is made as a whole.

B batch rows, U codec tokens, C channels, W samples of sound; C_i and W_i are those of a stage.

Test: ``pytest tests/voice/test_vocoder.py``
"""

import torch
from torch import nn
from torch.nn import functional as F

CODE_SIZE = 512  # width of a token's vector
VOICE_SIZE = 128  # width of the voice embedding
SLOPE = 0.1  # quirk: every leaky ReLU has this slope, as in upstream; HiFi-GAN has 0.01 before conv_post
PRE_KERNEL = POST_KERNEL = 7  # kernel sizes of the first and the last convolution


def code_book(rows, size):
    """An embedding table with the name that it has in the checkpoint."""
    return nn.ModuleDict({"embedding": nn.Embedding(rows, size)})


class Quantizer(nn.Module):
    """The code books: one for the tokens, and several for the parts of the voice embedding.

    Source: upstream's vqvae.py and ticodec/models.py; prefix ``quantizer.``
    """

    def __init__(self, config):
        super().__init__()
        size = VOICE_SIZE // len(config.global_tokens)
        self.quantizer_modules = nn.ModuleList([code_book(config.n_codes, CODE_SIZE)])
        self.quantizer_modules_globaltokens = nn.ModuleList(
            code_book(config.n_codes, size) for _ in config.global_tokens
        )

    def embed_tokens(self, tokens):
        """Shapes: [B, U] long -> [B, 512, U]."""
        return self.quantizer_modules[0]["embedding"](tokens).mT  # [B, 512, U]

    def embed_voice(self, global_tokens):
        """Shapes: [number of code books] long -> [1, 128]."""
        books = self.quantizer_modules_globaltokens
        return torch.cat([book["embedding"](token) for book, token in zip(books, global_tokens)])[None]


class ResBlock(nn.Module):
    """Pairs of convolutions, of which the first is dilated. Each pair is added to its input.

    ``receptive_radius``: how many samples on each side can influence a sample.
    """

    def __init__(self, channels, kernel, dilations):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=kernel // 2 * d) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.receptive_radius = kernel // 2 * sum(d + 1 for d in dilations)

    def forward(self, x):
        for dilated, plain in zip(self.convs1, self.convs2):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))  # [B, C, W]
        return x


class Generator(nn.Module):
    """Token vectors and voice embedding to sound. Each stage halves the channels and multiplies the samples.

    ``margins[i]`` is the context that stage i needs, in samples of its input on each side; the last number is that
    of conv_post. Context beyond the margin is cut off before each stage. This saves time: the first stages need most of
    the context, and the last ones, which have the most samples, need almost none.

    Source: upstream's ticodec/models.py:182,224-242; prefix ``generator.``
    """

    def __init__(self, config):
        super().__init__()
        blocks = list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))
        channels, self.num_blocks = config.upsample_initial_channel, len(blocks)
        self.conv_pre = nn.Conv1d(CODE_SIZE, channels, PRE_KERNEL, padding=PRE_KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            self.resblocks.extend(ResBlock(channels, *block) for block in blocks)
        self.conv_post = nn.Conv1d(channels, 1, POST_KERNEL, padding=POST_KERNEL // 2)
        self.margins = self._margins()

    def _margins(self):
        """Starts at the sound: the context that is needed after a stage gives the context that is needed before it."""
        margins = [POST_KERNEL // 2]
        for i, up in reversed(list(enumerate(self.ups))):
            after = margins[0] + max(block.receptive_radius for block in self.stage(i))
            margins.insert(0, (after + up.padding[0] + up.stride[0] - 1) // up.stride[0])
        return margins

    def stage(self, i):
        """The parallel residual blocks behind the i-th upsampling."""
        return self.resblocks[i * self.num_blocks : (i + 1) * self.num_blocks]

    def forward(self, vectors, voice, context=(0, 0)):
        """``context``: how many vectors at the start and at the end give context and no sound.

        Shapes: vectors [B, 512, U], voice [1, 128] -> [B, W] in -1..1.
        """
        x = self.conv_pre(vectors)  # [B, C_i, U]
        for i, up in enumerate(self.ups):
            x, context = trim_context(x, context, self.margins[i])
            x = up(F.leaky_relu(x, SLOPE))  # [B, C_i, W_i]
            context = [n * up.stride[0] for n in context]
            x = sum(block(x) for block in self.stage(i)) / self.num_blocks  # [B, C_i, W_i]
            # quirk: the voice embedding is added at the stage that has 128 channels, or nowhere, as in upstream
            if x.shape[1] == VOICE_SIZE:
                x = x + voice[..., None]  # [B, 128, W_i]
        x, context = trim_context(x, context, self.margins[-1])
        sound = torch.tanh(self.conv_post(F.leaky_relu(x, SLOPE)))  # [B, 1, W_i]
        return trim_context(sound, context, 0)[0][:, 0]  # [B, W]


def trim_context(x, context, margin):
    """Shortens the context at both ends to at most ``margin`` samples and returns the rest and its context.

    Shapes: x [B, C, W] -> [B, C, W_i]; context, two ints -> two ints.

    Example: 10 samples with context (4, 1) and margin 2: two samples at the start are removed; (2, 1) remain.
    """
    kept = [min(n, margin) for n in context]
    return x[..., context[0] - kept[0] : x.shape[2] - (context[1] - kept[1])], kept


class Vocoder(nn.Module):
    """Code books and generator. Parameter names as in ``codec/final.pt``, with weight norm folded."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.quantizer, self.generator = Quantizer(config), Generator(config)

    @property
    def receptive_radius(self):
        """How many tokens on each side can influence the samples of a token."""
        return self.generator.margins[0] + PRE_KERNEL // 2

    @torch.no_grad()
    def forward(self, tokens, voice=None, context=(0, 0)):
        """Sound of codec tokens. ``voice`` is a list of global tokens (default: those of the config).

        ``context``: how many tokens at the start and at the end give context and no sound.

        Shapes: tokens [B, U] long -> [B, W] float32 in -1..1, W = (U - sum(context)) * hop.
        Raises: ValueError if a token has no row in its code book, or the voice has another number of tokens.
        """
        voice = self._voice_tokens(voice, tokens.device)
        self._check_codes("tokens", tokens)
        self._check_codes("voice", voice)
        if tokens.shape[1] == 0:
            return torch.zeros(tokens.shape, device=tokens.device)
        vectors = self.quantizer.embed_tokens(tokens)  # [B, 512, U]
        return self.generator(vectors, self.quantizer.embed_voice(voice), context).float()  # [B, W]

    def _voice_tokens(self, voice, device):
        """The global tokens of a voice as a tensor, with type and number checked."""
        default = self.config.global_tokens
        voice = default if voice is None else voice
        if isinstance(voice, str) or not all(isinstance(token, int) for token in voice):
            raise ValueError(f"voice must be a list of {len(default)} global tokens, got {voice!r}")
        if len(voice) != len(default):
            raise ValueError(f"voice must be a list of {len(default)} global tokens, got {len(voice)}")
        return torch.tensor(voice, device=device)

    def _check_codes(self, name, ids):
        if ids.numel() and not 0 <= ids.min() <= ids.max() < self.config.n_codes:
            raise ValueError(
                f"{name} must be codes from 0 to {self.config.n_codes - 1}, got {ids.min()} to {ids.max()}"
            )


def fold_weight_norm(tensors):
    """Replaces each pair ``weight_g``, ``weight_v`` by the weight that it describes: g * v / |v|.

    The norm |v| is taken over each slice of the first axis.

    Shapes: g [outputs, 1, 1], v [outputs, inputs, kernel] -> [outputs, inputs, kernel] float32.
    Source: Salimans and Kingma 2016, equation 2.
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


def split_quiet(pending, sound, window, threshold):
    """Splits a stream of sound at a quiet sample: (what can be played now, or None; what stays pending).

    The split is in ``sound``, the newest part. Of its windows (``window`` samples) from the middle one on, that with the
    least mean |x| is chosen. If this mean is below ``threshold``, the split is at the quietest sample from its start on.

    Shapes: pending [any], sound [W] float32.
    Source: upstream's llm2tts.py:80-131.
    """
    whole = torch.cat([pending, sound])
    if len(sound) < window:
        return None, whole
    loudness = sound.abs()  # [W]
    sums = F.pad(loudness.double().cumsum(0), (1, 0))  # [W+1]
    means = (sums[window:] - sums[:-window]) / window  # [W-window+1]: of the window that starts at each sample
    first = len(sound) // 2 - window // 2  # the first window is centred in the sound
    least, offset = means[first:].min(0)
    if least >= threshold:
        return None, whole
    start = first + int(offset)
    # quirk: the offset is added twice, so more samples than the window are searched, as in upstream
    end = start + int(offset) + window
    place = len(pending) + start + int(loudness[start:end].argmin())
    return whole[:place], whole[place:]


def stretch(waveform, speed, *, frame=960, search=240):
    """Makes a sound faster (speed above 1) or slower at the same pitch, by waveform similarity overlap-add.

    Output frames overlap by half: one starts every frame/2 samples. Frame i is copied from the input at about
    i * speed * frame/2. Within ``search`` samples of that, the place is chosen whose samples are most similar to the
    continuation of the frame before.

    Shapes: [W] -> [round(W / speed)] float32.
    Units: frame and search in samples; the defaults are 40 ms and 10 ms at 24 kHz.
    Raises: ValueError if speed is not from 0.5 to 2.
    Source: Verhelst and Roelands 1993.
    """
    if not 0.5 <= speed <= 2:
        raise ValueError(f"speed must be 0.5 to 2.0, got {speed}")
    if speed == 1 or len(waveform) == 0:
        return waveform
    step, length = frame // 2, round(len(waveform) / speed)
    count = length // step + 2  # frame i is centred on output sample i * step
    before, after = step + search, int(count * step * speed) + frame + search - len(waveform)
    padded = F.pad(waveform.float(), (before, after))
    window = torch.hann_window(frame, device=waveform.device)
    out = padded.new_zeros(count * step + step)
    continuation = 0  # the place in the input at which the frame before continues
    for i in range(count):
        start = round(i * step * speed)  # of the search range; without a shift the frame starts `search` later
        if i == 0:
            start += search
        else:
            candidates = padded[start : start + frame + 2 * search]
            start += most_similar(candidates, padded[continuation : continuation + frame])
        out[i * step : i * step + frame] += window * padded[start : start + frame]
        continuation = start + step
    return out[step : step + length]


def most_similar(candidates, frame):
    """The offset in ``candidates`` at which the samples correlate most with ``frame``, relative to their energy."""
    correlation = F.conv1d(candidates[None, None], frame[None, None])[0, 0]
    energy = F.avg_pool1d(candidates.square()[None, None], len(frame), 1)[0, 0]
    return int((correlation * torch.rsqrt(energy + 1e-9)).argmax())
