"""Another device than the processor, where there is none: on torch's device meta a tensor that was left on the processor
beside the others is an error, as on a GPU, and nothing can be read back from it."""

import functools
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN
from torch import nn

from vita_ref import Vita
from vita_ref.sampling import Sampling, repetition_penalty, sample
from vita_ref.scale import METHODS, quantized_linears, use_fast

CONFIG = Vita.from_pretrained(GOLDEN / "checkpoint").config
CONFIG = replace(CONFIG, decoder=replace(CONFIG.decoder, num_hidden_layers=1))  # every layer is like the first


@functools.cache
def on_meta(method=None, dtype=torch.bfloat16):
    """The golden model without values, quantised there if a method is named, with the products of the table."""
    with torch.device("meta"):
        vita = Vita(CONFIG).requires_grad_(False).to(dtype).eval()
    if method:
        weights = {n: m.weight for n, m in vita.decoder.named_modules() if isinstance(m, nn.Linear)}
        assign = quantized_linears(vita.decoder, method)
        for name, weight in weights.items():
            assign(vita.decoder.get_submodule(name), "weight", weight)
    use_fast(vita, always=True)
    return vita


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_prompt_padding_cache_and_tokens_stay_on_the_device(method, dtype):
    decoder = on_meta(method, dtype).decoder
    cache, width = decoder.new_cache(2, 20), CONFIG.decoder.hidden_size
    for n, mask in ((9, meta(2, 9, dtype=torch.bool)), (1, None), (3, None)):
        hidden = decoder(meta(2, n, width, dtype=dtype), attention_mask=mask, cache=cache).last_hidden_state
        logits = decoder.lm_head(hidden[:, -1])
        assert logits.is_meta and logits.dtype == dtype and logits.shape == (2, CONFIG.decoder.vocab_size)
    assert cache.length == 13 and all(t.is_meta for t in (cache.keys, cache.values, cache.mask, cache.next_positions))
    chosen = sample(repetition_penalty(logits, meta(*logits.shape, dtype=torch.bool), 1.2), Sampling().check(), None)
    assert chosen.is_meta and decoder.embed_tokens(chosen).is_meta


def test_towers_stay_on_the_device():
    vita = on_meta()
    assert vita.projector(vita.vision(meta(2, 3, *[CONFIG.vision.image_size] * 2))).is_meta
    positions = meta(1, dtype=torch.long)
    hidden = vita.audio.encode(vita.audio.subsample(vita.audio.normalise(meta(1, 40, 80))), positions)
    assert vita.audio.adapt(hidden, positions).is_meta


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_tensor_that_is_left_on_the_processor_is_found(method):
    with pytest.raises((RuntimeError, NotImplementedError), match="device|meta"):
        on_meta(method).decoder(torch.zeros(1, 3, CONFIG.decoder.hidden_size, dtype=torch.bfloat16))


@pytest.mark.parametrize("method", [None, *METHODS])
def test_no_layer_and_no_product_reads_a_value_back(monkeypatch, method):
    """A value that is read back makes the loop wait for the device."""
    decoder, reads = on_meta(method).decoder, []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *a, name=name: reads.append(name))
    cache = decoder.new_cache(1, 8)
    for n in (4, 1):
        decoder(meta(1, n, CONFIG.decoder.hidden_size), cache=cache)
    assert reads == []
