"""The speech decoder: it reads rows of text and predicts codec tokens.

    text rows [1, U, D] -> encode_text -> bos and these rows [1, U+1, D] -> prefill -> cache
    codec token, the first is sos -> step -> logits of the next token [1, V]

Layers, rotary positions and the KV cache are those of the language model. Text rows see each other in both
directions. A codec token sees the text and the codec tokens before it.

U rows of text, S new positions, D width of the speech decoder, V its vocabulary. The batch is always one sentence.

Test: ``pytest tests/voice/test_speech_decoder.py``
"""

import torch
from torch import nn

from ..cache import KVCache
from ..decoder import DecoderLayer, RMSNorm, make_embedding, rope_angles
from ..masks import SEE_ALL


class SpeechDecoder(nn.Module):
    """A pre-network for text rows, and a decoder for codec tokens. Both consist of the language model's layers.

    Source: upstream's model/vita_tts/decoder/decoder.py; parameter names as in ``decoder/final.pt``.
    """

    def __init__(self, config):
        super().__init__()
        self.config, size = config, config.decoder.hidden_size
        self.embedding = make_embedding(config.decoder.vocab_size, size)
        self.layers_pre_nn = nn.ModuleList(DecoderLayer(config.decoder, i) for i in range(config.num_pre_layers))
        self.layers = nn.ModuleList(DecoderLayer(config.decoder, i) for i in range(config.decoder.num_hidden_layers))
        self.norm = RMSNorm(size, config.decoder.rms_norm_eps)
        self.out_fnn = nn.Linear(size, config.decoder.vocab_size)

    def new_cache(self):
        """An empty cache for one sentence, without a limit."""
        c, like = self.config.decoder, self.norm.weight
        shape = (c.num_hidden_layers, 1, c.num_key_value_heads, None, c.head_dim)
        return KVCache(*shape, like.dtype, like.device)

    @torch.no_grad()
    def encode_text(self, rows):
        """The pre-network. Shapes: [1, U, D] -> [1, U, D]."""
        return self._run_layers(self.layers_pre_nn, rows)

    @torch.no_grad()
    def prefill(self, rows, cache):
        """Writes bos and the encoded rows to the cache and returns their hidden states.

        Shapes: [1, U, D] -> [1, U+1, D].
        """
        bos = torch.full((1, 1), self.config.specials[0], device=rows.device)  # [1, 1]
        x = torch.cat([self.embedding(bos), rows], 1)  # [1, U+1, D]
        # quirk: the text is read in both directions and without the final norm, as in upstream
        return self._run_layers(self.layers, x, cache)

    @torch.no_grad()
    def step(self, token, cache):
        """Reads one codec token (an int) and returns the logits of the next one. Shapes: [1, V] float32."""
        token = torch.full((1, 1), token, device=self.norm.weight.device)  # [1, 1]
        x = self._run_layers(self.layers, self.embedding(token), cache)  # [1, 1, D]
        return self.out_fnn(self.norm(x))[:, 0].float()  # [1, V]

    def _run_layers(self, layers, x, cache=None):
        """Layers without a causal mask: new positions see each other and the cache. Shapes: [1, S, D] -> [1, S, D]."""
        past = cache.length if cache is not None else 0
        positions = torch.arange(past, past + x.shape[1], device=x.device)[None]  # [1, S]
        angles = rope_angles(positions, self.config.decoder.head_dim, self.config.decoder.rope_theta)
        for layer in layers:
            x, _ = layer(x, angles, SEE_ALL, cache)
        if cache is not None:
            cache.advance(x.shape[1], None, positions)
        return x


def apply_penalty(logits, recent, penalty):
    """Divides the logits of recent tokens by the penalty, once for each occurrence.

    Shapes: logits [1, V]; recent, a list of ids -> [1, V].

    Example: logits [2, -3, 1], recent [0, 1, 0] and penalty 2 give [0.5, -1.5, 1].
    """
    if not recent:
        return logits
    counts = torch.bincount(torch.tensor(recent, device=logits.device), minlength=logits.shape[1])  # [V]
    # quirk: the penalty counts every occurrence, and it makes negative logits likelier, as in upstream
    return logits / penalty**counts  # [1, V]
