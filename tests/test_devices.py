"""Every tensor is made on the device of the input: the model answers on a device beside the CPU as on the CPU.

The device is a pretended one (see `pretend_device`), so these run everywhere; the last test is for a real one.
"""

import pytest
import torch
from pretend_device import DEVICE, Elsewhere, move, pretend

from vita_ref import KVCache, Vita, splice
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig, VitaConfig
from vita_ref.masks import Mask, count_positions, last_hidden
from vita_ref.sampling import seen_tokens


def away(x):
    return Elsewhere(x)


def test_the_pretended_device_computes_and_refuses_two_devices_as_a_gpu_does():
    with pretend():
        x = torch.arange(3, device=DEVICE)
        assert (x + x).tolist() == [0, 2, 4] and (x + torch.tensor(1)).tolist() == [1, 2, 3]
        assert x.device == DEVICE and x.cpu().device.type == "cpu"
        x[1:] = 7
        assert x.tolist() == [0, 7, 7]
        for other in (torch.ones(3), torch.zeros(1)):
            with pytest.raises(RuntimeError, match="on the CPU"):
                x * other


def config(**options):
    audio = AudioConfig(8, 12, 1, 2, subsampling_size=6, num_mel_bins=15, **options)
    return VitaConfig(
        decoder=DecoderConfig(64, 16, 20, 2, 4, 2, 4),
        vision=VisionConfig(8, 12, 1, 2, image_size=8, patch_size=2),
        audio=audio,
        image_token_index=-200,
        audio_token_index=-500,
    )


def model(seed=0, **options):
    torch.manual_seed(seed)
    vita = Vita(config(**options)).eval().requires_grad_(False)
    for value in vita.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-0.3, 0.3)
    return vita


IMAGE = torch.linspace(-1, 1, 3 * 8 * 8).reshape(3, 8, 8)
SOUNDS = {"audios": [torch.linspace(-1, 1, 23 * 15).reshape(23, 15), torch.linspace(1, -1, 40 * 15).reshape(40, 15)]}
IDS = torch.tensor([[5, -200, 6, -500, 7], [0, 8, -500, 9, 10]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
PROMPTS = ({}, {"num_prompts": 2}, {"position_encoding": "rel-enc", "chunk_size": 2, "left_chunks": 1})


@pytest.mark.parametrize("options", PROMPTS, ids=str)
@pytest.mark.parametrize("sounds", ["as a list", "padded"])
def test_a_batch_with_images_and_sounds_is_answered_on_its_device(options, sounds):
    rows = SOUNDS["audios"]
    audios = SOUNDS if sounds == "as a list" else {
        "audios": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), "lengths": torch.tensor([23, 40])
    }  # fmt: skip
    call = {"images": [IMAGE], "audios": audios, "attention_mask": MASK, "max_new_tokens": 3, "repetition_penalty": 1.3}
    vita = model(**options)
    want = vita.generate(IDS, **call)
    move(vita)
    with pretend(), torch.no_grad():
        moved = call | {"images": [away(IMAGE)], "attention_mask": away(MASK)}
        moved["audios"] = {name: [away(x) for x in v] if isinstance(v, list) else away(v) for name, v in audios.items()}
        got = Vita.generate.__wrapped__(vita, away(IDS), **moved)  # without its inference mode, which hides views
        assert got.device == DEVICE and got.tolist() == want.tolist()


@pytest.mark.parametrize("images", [None, torch.stack([IMAGE] * 2)])
@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()])
@pytest.mark.parametrize("eager", [False, True])
def test_a_pass_in_chunks_with_labels_is_made_on_its_device(images, mask, eager):
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]) if images is None else torch.tensor([[1, 2, -200, 4], [5, 6, -200, 8]])
    labels = torch.where(ids < 0, -100, ids)

    def passes(vita, place):
        given = place(mask) if mask is not None else None
        options = {"output_attentions": eager, "output_hidden_states": True, "shared_v_pid_stride": 2 if images is not None else None}
        first = vita(place(ids), images=None if images is None else place(images), attention_mask=given, labels=place(labels), **options)
        more = vita(place(torch.tensor([[9, 9, 9], [9, 9, 9]])), cache=first.cache)
        again = vita(place(torch.tensor([[9], [9]])), cache=more.cache, output_attentions=eager)
        return [first.logits, first.loss, first.hidden_states[-1], more.logits, again.logits, again.cache.next_positions]

    vita = model()
    with torch.no_grad():
        want = passes(vita, lambda x: x)
        move(vita)
        with pretend():
            got = passes(vita, away)
            for a, b in zip(got, want):
                assert a.device == DEVICE
                torch.testing.assert_close(a.cpu(), b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stride", [None, 2])
def test_everything_that_a_splice_returns_is_on_the_device_of_the_ids(side, stride):
    table = away(torch.randn(16, 6))
    with pretend():
        out = splice(
            away(IDS), lambda ids: table[ids], [away(torch.ones(4, 6))], [away(torch.ones(3, 6)), away(torch.ones(2, 6))],
            away(MASK), away(IDS), image_token=-200, audio_token=-500, padding_side=side, shared_v_pid_stride=stride,
        )  # fmt: skip
        assert {x.device for x in out if isinstance(x, torch.Tensor)} == {DEVICE}
        assert out.position_ids.dtype == out.labels.dtype == out.lengths.dtype == torch.long


def test_masks_positions_and_the_cache_are_on_the_device_that_is_named():
    with pretend():
        new, hidden = away(torch.tensor([[False, True, True]])), away(torch.randn(1, 3, 4))
        made = [count_positions(None, 0, 2, 3, DEVICE), count_positions(None, away(torch.tensor([4, 5])), 2, 3, DEVICE)]
        made += [count_positions(new, 0, 1, 3, DEVICE), last_hidden(hidden, new), seen_tokens(IDS, None, 12, DEVICE)]
        made += [Mask(2).rows(0, 3, DEVICE), Mask(0, new).rows(0, 3, DEVICE)]
        cache = KVCache(1, 1, 2, None, 4, torch.float32, DEVICE)
        cache.write(0, away(torch.ones(1, 2, 3, 4)), away(torch.ones(1, 2, 3, 4)))
        cache.advance(3)
        made += [cache.keys, cache.values, cache.mask, cache.next_positions, *cache[0]]
        assert {x.device for x in made} == {DEVICE}


@pytest.mark.parametrize("kind", [k for k in ("cuda", "mps", "xpu") if getattr(torch, k, None) and getattr(torch, k).is_available()] or [None])
def test_a_real_device_gives_the_tokens_of_the_cpu(kind):
    if kind is None:
        pytest.skip("needs a GPU: torch finds no cuda, mps or xpu here")
    call = {"images": [IMAGE], "audios": SOUNDS, "attention_mask": MASK, "max_new_tokens": 3}
    vita = model()
    want = vita.generate(IDS, **call)
    assert vita.to(kind).generate(IDS.to(kind), **call | {"attention_mask": MASK.to(kind)}).tolist() == want.tolist()
