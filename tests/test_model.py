"""The whole model: what each part takes and gives, what is refused, and that all entry points give what the loop gives.

Other tests use `tiny_vita` too. Its sizes are pairwise different, so that no two dimensions can be confused, and its weights
are large enough that a wrong position or a wrong row changes the logits.
"""

import zlib
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from vita_ref import KVCache, Vita, VitaConfig
from vita_ref.config import AudioConfig, DecoderConfig, VisionConfig
from vita_ref.inputs import Batch
from vita_ref.request import Request
from vita_ref.sampling import Sampling
from vita_ref.splice import splice

IMAGE, AUDIO, EOS = -200, -500, 5
WIDTH, BINS, VOCAB, PIXELS, VIEW = 20, 17, 53, 28, 4  # VIEW: positions of one tile
CLOSE = {"atol": 5e-5, "rtol": 0}
CONFIG = VitaConfig(
    DecoderConfig(VOCAB, WIDTH, 36, 3, 6, 2, 8, rope_theta=1e4),
    VisionConfig(16, 22, 1, 2, image_size=PIXELS, patch_size=7),
    AudioConfig(12, 18, 1, 3, subsampling_size=14, num_mel_bins=BINS),
    eos_token_ids=(EOS,),
    pad_token_id=0,
)


class WordTokenizer:
    """Each word is one id. `decode` writes the ids as numbers, so that no two ids have the same text."""

    bos_token_id = eos_token_id = system_prompt = chat_template = None
    special_ids, leading_spaces = frozenset(), 1

    def __contains__(self, token_id):
        return 0 <= token_id < VOCAB

    def __call__(self, text, return_tensors=None):
        ids = [10 + zlib.crc32(word.encode()) % (VOCAB - 10) for word in text.split()]
        return SimpleNamespace(input_ids=ids if return_tensors is None else torch.tensor([ids]))

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(int(i)) for i in ids)

    def piece(self, token_id):
        return f" {token_id}".encode()

    def id_of(self, text):
        return None


def tiny_vita(seed=0, **changes):
    """A model of random weights, in eval mode and without gradients; ``changes`` go to its config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vita = Vita(replace(CONFIG, **changes), WordTokenizer()).eval().requires_grad_(False)
        for weight in vita.parameters():
            scale = 0.2 if weight.dim() == 1 else 0.5 / weight.shape[-1] ** 0.5 + 0.15
            weight.copy_(weight * (weight.dim() == 1) + torch.randn_like(weight) * scale)
    return vita


def noise(*shape, seed=1):
    """Random numbers that depend on the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(*row):
    return torch.tensor([row])


@pytest.fixture(scope="module")
def vita():
    return tiny_vita()


def test_a_model_built_on_the_meta_device_gives_the_same_logits_once_weights_are_assigned():
    with torch.device("meta"):
        empty = Vita(CONFIG)
    full = tiny_vita()
    empty.load_state_dict(full.state_dict(), assign=True)
    x = ids(7, IMAGE, 9, AUDIO)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    torch.testing.assert_close(empty.eval()(x, **media).logits, full(x, **media).logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_and_tokens_in_every_dtype_are_near_those_of_float32(dtype):
    vita = tiny_vita().to(dtype)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    out = vita(ids(7, IMAGE, 9, AUDIO), **media)
    assert out.logits.dtype == dtype and out.logits.isfinite().all()
    full = tiny_vita()(ids(7, IMAGE, 9, AUDIO), **media).logits
    torch.testing.assert_close(out.logits.float(), full, atol=0.5 if dtype == torch.bfloat16 else 0.06, rtol=0)
    last = out.logits[0, -1].float()
    first = int(vita.generate(ids(7, IMAGE, 9, AUDIO), **media, max_new_tokens=1, eos_token_id=()))
    assert last[first] >= last.max() - 0.05  # rounding may choose the second of two nearly equal logits


def test_the_output_has_the_shapes_of_the_interface(vita):
    out = vita(ids(7, IMAGE, 9), images=noise(1, 3, PIXELS, PIXELS), output_hidden_states=True, output_attentions=True)
    s, c = 2 + VIEW, CONFIG.decoder
    assert out.logits.shape == (1, s, VOCAB) and out.loss is None and isinstance(out.cache, KVCache)
    assert [x.shape for x in out.hidden_states] == [(1, s, WIDTH)] * (c.num_hidden_layers + 1)
    assert [x.shape for x in out.attentions] == [(1, c.num_attention_heads, s, s)] * c.num_hidden_layers
    assert out.segments == [[("text", 0, 1), ("image", 1, 5), ("text", 5, 6)]]
    assert vita.decoder.lm_head(out.hidden_states[-1]).equal(out.logits)  # the last hidden state is after the final norm
    plain = vita(ids(7, 8))
    assert plain.hidden_states is None and plain.attentions is None and plain.segments is None


def test_images_and_sounds_are_encoded_to_rows_as_wide_as_the_decoder(vita):
    tiles = noise(3, 3, PIXELS, PIXELS)
    encoded = vita.encode_images(tiles)
    assert encoded.shape == (3, VIEW, WIDTH) and encoded.equal(vita.projector(vita.vision(tiles)))
    sounds = vita.encode_audios(noise(2, 30, BINS), [30, 15])
    assert sounds.embeds.shape == (2, 3, WIDTH) and sounds.lengths.tolist() == [3, 2]


def test_each_placeholder_takes_the_next_image_or_sound(vita):
    """The embeddings of the prompt are those of its text and what the encoders give, in the order of the placeholders."""
    images, sounds = noise(2, 3, PIXELS, PIXELS), noise(2, 30, BINS)
    x = torch.tensor([[AUDIO, 7, IMAGE, 8], [IMAGE, 9, AUDIO, 7]])
    out = vita(x, images=images, audios={"audios": sounds, "lengths": [30, 23]}, output_hidden_states=True)
    image, sound = vita.encode_images(images), vita.encode_audios(sounds, [30, 23]).embeds
    seven, eight, nine = (vita.embed(torch.tensor([token])) for token in (7, 8, 9))
    rows = [
        torch.cat([sound[0], seven, image[0], eight]),
        torch.cat([image[1], nine, sound[1], seven]),
    ]
    torch.testing.assert_close(out.hidden_states[0], torch.stack(rows), **CLOSE)


def test_all_tiles_of_a_list_entry_take_one_placeholder(vita):
    tiles, single = noise(3, 3, PIXELS, PIXELS), noise(3, PIXELS, PIXELS, seed=2)
    x = ids(7, IMAGE, 8, IMAGE)
    out = vita(x, images=[tiles, single], output_hidden_states=True)
    assert out.segments[0] == [("text", 0, 1), ("image", 1, 13), ("text", 13, 14), ("image", 14, 18)]
    torch.testing.assert_close(
        out.hidden_states[0][0, 1:13], torch.cat([vita.encode_images(t[None])[0] for t in tiles]), **CLOSE
    )


def test_images_of_different_sizes_may_be_in_one_batch(vita):
    x, small, wide = ids(7, IMAGE, IMAGE), noise(3, PIXELS, PIXELS), noise(3, PIXELS, 2 * PIXELS)
    out = vita(x, images=[small, wide], output_hidden_states=True)
    assert out.segments[0] == [("text", 0, 1), ("image", 1, 5), ("image", 5, 13)]
    torch.testing.assert_close(out.hidden_states[0][0, 5:], vita.encode_images(wide[None])[0], **CLOSE)


def test_slow_frames_have_more_positions_than_fast_ones():
    vita = tiny_vita(vision=replace(CONFIG.vision, image_size=140))  # a grid of 10 x 10 after the shuffle
    frames = noise(2, 3, 140, 140)
    out = vita(ids(IMAGE, IMAGE, 7), images=frames, sf_masks=[1, 1])
    assert out.segments[0] == [("image", 0, 144), ("image", 144, 144 + 49), ("text", 193, 194)]
    assert vita(ids(IMAGE, IMAGE, 7), images=frames, sf_masks=[0, 0]).segments[0][1] == ("image", 100, 200)


def test_filter_banks_and_embeddings_are_distinguished_by_their_width(vita):
    sound, x = noise(1, 30, BINS), ids(7, AUDIO)
    from_bank = vita(x, audios={"audios": sound, "lengths": [30]}).logits
    embeds = vita.encode_audios(sound, [30]).embeds
    assert vita(x, audios={"audios": embeds, "lengths": [3]}).logits.equal(from_bank)
    both = vita(ids(AUDIO, 7, AUDIO), audios={"audios": [sound[0], embeds[0]]}, output_hidden_states=True)
    torch.testing.assert_close(both.hidden_states[0][0, :3], both.hidden_states[0][0, 4:], **CLOSE)


def test_kind_distinguishes_embeddings_from_filter_banks_of_the_same_width():
    vita = tiny_vita(decoder=replace(CONFIG.decoder, hidden_size=BINS))
    rows, x = noise(1, 23, BINS), ids(7, AUDIO)
    assert vita(x, audios={"audios": rows, "lengths": [23]}).segments[0][1] == ("audio", 1, 4)
    assert vita(x, audios={"audios": rows, "lengths": [23], "kind": "embeds"}).segments[0][1] == ("audio", 1, 24)


def test_embeddings_of_a_sound_need_no_audio_encoder():
    text_only, rows = tiny_vita(vision=None, audio=None), noise(1, 6, WIDTH)
    whole = torch.cat([text_only.embed(ids(7)), rows], 1)
    logits = text_only(ids(7, AUDIO), audios={"audios": rows, "lengths": [6]}).logits
    assert logits.equal(text_only(inputs_embeds=whole).logits)


@pytest.mark.parametrize("given, rows", [({}, 6), ({"lengths": [4]}, 4), ({"lengths": [75]}, 6), ({"lengths": [0]}, 0)])
def test_lengths_keep_the_first_rows_of_a_sound_and_at_most_all(vita, given, rows):
    sound = noise(1, 6, WIDTH)
    out = vita(ids(7, AUDIO, 8), audios={"audios": sound} | given, output_hidden_states=True)
    assert out.hidden_states[0].equal(torch.cat([vita.embed(ids(7)), sound[:, :rows], vita.embed(ids(8))], 1))


@pytest.mark.parametrize("length, width, kept, rows", [(30, BINS, 60, 3), (30, BINS, 2, 2), (6, WIDTH, 60, 6), (6, WIDTH, 4, 4)])
def test_lengths_for_llm_shorten_what_the_decoder_takes_and_not_what_is_encoded(vita, length, width, kept, rows):
    sound = {"audios": noise(1, length, width), "lengths": [length]}
    whole = vita(ids(7, AUDIO), audios=sound, output_hidden_states=True).hidden_states[0]
    out = vita(ids(7, AUDIO), audios=sound | {"lengths_for_llm": [kept]}, output_hidden_states=True)
    assert out.hidden_states[0].equal(whole[:, : 1 + rows])


def test_learned_prompts_precede_a_sound_and_do_not_count_in_its_length():
    vita = tiny_vita(audio=replace(CONFIG.audio, num_prompts=5))
    sound = {"audios": noise(1, 30, BINS), "lengths": [30]}
    assert vita(ids(AUDIO, 7), audios=sound).segments[0][0] == ("audio", 0, 8)
    assert vita(ids(AUDIO, 7), audios=sound | {"lengths_for_llm": [2]}).segments[0][0] == ("audio", 0, 7)


def test_the_loss_is_the_mean_over_the_labels_that_are_not_below_zero(vita):
    x, labels = ids(7, 8, 9, 7, 8), ids(-100, 8, -101, -102, 8)
    out = vita(x, labels=labels)
    log_probs = out.logits[0].log_softmax(-1)
    torch.testing.assert_close(out.loss, -(log_probs[0, 8] + log_probs[3, 8]) / 2)


def test_a_state_label_is_written_on_the_last_position_of_its_sound_and_is_not_in_the_loss(vita):
    x, labels, sound = ids(7, AUDIO, 8), ids(7, -100, 8), noise(1, 4, WIDTH)
    audios = {"audios": sound, "state_labels": [-102]}
    assert vita.inputs(Batch(x, audios=audios, labels=labels)).labels.tolist() == [[7, -100, -100, -100, -102, 8]]
    without = vita(x, audios={"audios": sound}, labels=labels)
    assert vita(x, audios=audios, labels=labels).loss.equal(without.loss)


def test_the_loss_has_gradients_in_every_part():
    vita = tiny_vita().requires_grad_(True)
    x, labels = ids(IMAGE, AUDIO, 8, 9), ids(-100, -100, 8, 9)
    media = {"images": noise(1, 3, PIXELS, PIXELS), "audios": {"audios": noise(1, 30, BINS), "lengths": [30]}}
    out = vita(x, labels=labels, **media)
    out.loss.backward()
    assert out.cache is None
    parts = {name.split(".")[0] for name, p in vita.named_parameters() if p.grad is not None and p.grad.any()}
    assert parts == {"decoder", "vision", "projector", "audio"}


def test_a_layer_that_fails_leaves_the_cache_as_it_was(vita, monkeypatch):
    cache = vita(ids(7, 8, 9)).cache
    before = cache.length, cache.next_positions.tolist()

    def broken(*_):
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as m:
        m.setattr(vita.decoder.layers[2].mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            vita(ids(7, 8), cache=cache)
    assert (cache.length, cache.next_positions.tolist()) == before
    whole = vita(ids(7, 8, 9, 7)).logits[:, 3:]
    torch.testing.assert_close(vita(ids(7), cache=cache).logits, whole, **CLOSE)


TILE = noise(1, 3, PIXELS, PIXELS)
REFUSED = {
    "neither ids nor embeddings": (lambda v: v(), ["input_ids", "inputs_embeds"]),
    "both ids and embeddings": (lambda v: v(ids(7), inputs_embeds=noise(1, 1, WIDTH)), ["input_ids", "inputs_embeds"]),
    "images beside embeddings": (lambda v: v(inputs_embeds=noise(1, 1, WIDTH), images=TILE), ["input_ids"]),
    "ids without a batch dimension": (lambda v: v(torch.tensor([7, 8])), ["input_ids", "[2]"]),
    "an id outside the vocabulary": (lambda v: v(ids(7, VOCAB)), ["0..52", "53"]),
    "a placeholder without its image": (lambda v: v(ids(7, IMAGE)), ["1 image placeholder,", "0 images were"]),
    "placeholders without sounds": (lambda v: v(ids(AUDIO, AUDIO)), ["2 audio placeholders", "0 audios were"]),
    "fewer images than placeholders": (lambda v: v(ids(IMAGE, IMAGE), images=TILE), ["2 image placeholders", "1 image was"]),
    "more images than placeholders": (lambda v: v(ids(7), images=TILE), ["0 image placeholders", "1 image was"]),
    "position ids of a spliced prompt": (
        lambda v: v(ids(IMAGE), images=TILE, position_ids=ids(0)),
        ["position_ids"],
    ),
    "position ids of another length": (lambda v: v(ids(7, 8), position_ids=ids(0, 1, 2)), ["position_ids", "[1, 3]"]),
    "a mask of another length": (lambda v: v(ids(7, 8), attention_mask=torch.ones(1, 3)), ["[1, 2]", "[1, 3]"]),
    "a mask of more rows": (lambda v: v(ids(7, 8), attention_mask=torch.ones(2, 2)), ["[1, 2]", "[2, 2]"]),
    "a mask without a batch dimension": (lambda v: v(ids(7, 8), attention_mask=torch.ones(2)), ["attention_mask", "[2]"]),
    "no new tokens beside a mask": (
        lambda v: v(ids(7)[:, :0], cache=v(ids(7)).cache, attention_mask=torch.ones(1, 1)),
        ["prompt is empty"],
    ),
    "labels of another length": (lambda v: v(ids(7, 8, 9), labels=ids(7, 8)), ["labels", "[1, 3]", "[1, 2]"]),
    "labels that are a list": (lambda v: v(ids(7, 8), labels=[ids(7, 8)[0]]), ["labels", "[1, 2]", "a list"]),
    "audios that are not a dict": (lambda v: v(ids(AUDIO), audios=noise(1, 6, WIDTH)), ["audios", "dict"]),
    "a dict of audios without the sounds": (lambda v: v(ids(AUDIO), audios={"lengths": [6]}), ["audios"]),
    "more lengths than sounds": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "lengths": [6, 6]}),
        ["lengths", "1", "[6, 6]"],
    ),
    "fewer lengths_for_llm than sounds": (
        lambda v: v(ids(AUDIO, AUDIO), audios={"audios": noise(2, 6, WIDTH), "lengths_for_llm": [6]}),
        ["lengths_for_llm", "2", "[6]"],
    ),
    "a negative length": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "lengths": [-1]}),
        ["lengths", "-1"],
    ),
    "an unknown kind of sound": (
        lambda v: v(ids(AUDIO), audios={"audios": noise(1, 6, WIDTH), "kind": "embed"}),
        ["kind", "'embed'"],
    ),
    "embeddings of another width": (
        lambda v: v(ids(7, AUDIO), audios={"audios": noise(1, 6, WIDTH + 1), "kind": "embeds"}),
        [str(WIDTH), str(WIDTH + 1)],
    ),
    "an image without a batch dimension": (lambda v: v(ids(IMAGE), images=noise(3, PIXELS, PIXELS)), ["[N, 3"]),
    "several frames for one sf_mask": (lambda v: v(ids(IMAGE), images=[TILE.repeat(4, 1, 1, 1)], sf_masks=[1]), ["one tile"]),
    "another number of sf_masks than of frames": (lambda v: v(ids(IMAGE), images=TILE, sf_masks=[1, 1]), ["1 entries, one for each image", "got 2"]),
    "a negative stride": (lambda v: v(ids(IMAGE), images=TILE, shared_v_pid_stride=-1), ["at least 1", "-1"]),
    "zero new tokens": (lambda v: v.generate(ids(7), max_new_tokens=0), ["max_new_tokens", "0"]),
    "a number of tokens that is no integer": (lambda v: v.generate(ids(7), max_new_tokens=1.5), ["max_new_tokens", "1.5"]),
    "an option out of range": (lambda v: v.generate(ids(7), max_new_tokens=1, top_p=0), ["top_p", "0"]),
    "an empty prompt": (lambda v: v.generate(ids()[:, :0].long(), max_new_tokens=1), ["empty"]),
    "an empty prompt beside others": (
        lambda v: v.generate([ids(7, 8)[0], ids()[0].long()], max_new_tokens=1),
        ["empty"],
    ),
    "a row of padding only": (
        lambda v: v.generate(torch.tensor([[7], [8]]), attention_mask=torch.tensor([[1], [0]]), max_new_tokens=1),
        ["empty"],
    ),
    "include_prompt with a list of rows": (
        lambda v: v.generate([ids(7)[0]], max_new_tokens=1, include_prompt=True),
        ["include_prompt", "tensor"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments_are_refused_in_one_line_with_the_expected_and_the_given_value(vita, case):
    call, parts = REFUSED[case]
    with pytest.raises(ValueError) as caught:
        call(vita)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_without_a_vision_tower_or_an_audio_encoder_images_and_sounds_are_refused_with_the_reason():
    text_only = tiny_vita(vision=None, audio=None, missing={"vision": "its folder was not found"})
    with pytest.raises(ValueError, match="cannot take images: its folder was not found"):
        text_only.encode_images(TILE)
    with pytest.raises(ValueError, match="cannot take sounds: it has no audio part"):
        text_only.encode_audios(noise(1, 30, BINS), [30])


def test_the_decoder_takes_any_embeddings(vita):
    embeds = noise(1, 5, WIDTH)
    assert vita.decoder.lm_head(vita.decoder(embeds).last_hidden_state).equal(vita(inputs_embeds=embeds).logits)


def test_respond_stops_at_the_given_end_token(vita):
    x = ids(*vita.tokenizer("one two three").input_ids)
    new = vita.generate(x, max_new_tokens=6, eos_token_id=())[0].tolist()
    stop = new[3]
    request = Request("one two three", raw=True)
    expected = vita.tokenizer.decode(new[: new.index(stop)])
    assert vita.respond_batch([request], max_new_tokens=6, eos_token_id=stop) == [expected]


def test_ids_that_stand_for_no_token_have_no_text(vita, monkeypatch):
    monkeypatch.setattr(WordTokenizer, "__contains__", lambda self, token_id: token_id not in (8, VOCAB - 1))
    assert vita.text(torch.tensor([7, 8, 9, VOCAB - 1])) == "7 9"


def test_the_loss_is_the_same_on_either_side_of_the_padding(vita):
    row = ids(5, 6, 7, 8)
    left, right = (torch.cat(parts, 1) for parts in ((ids(0, 0), row), (row, ids(0, 0))))
    alone = vita(row, labels=row).loss
    for x in (left, right):
        mask = x.ne(0)
        for labels in (x, x.masked_fill(~mask, -100)):
            torch.testing.assert_close(vita(x, attention_mask=mask, labels=labels).loss, alone, **CLOSE)


def test_a_mask_may_cover_cached_and_new_columns_beside_images_too(vita):
    first = vita(ids(0, 7, 8), attention_mask=ids(0, 1, 1))
    whole = vita(ids(7, 8, IMAGE, 9), images=TILE).logits[:, 2:]
    rest = vita(ids(IMAGE, 9, 0), images=TILE, cache=first.cache, attention_mask=ids(0, 1, 1, 1, 1, 0))
    torch.testing.assert_close(rest.logits, whole, **CLOSE)


def test_a_pass_that_records_gradients_makes_no_cache(vita):
    learner = tiny_vita()
    learner.decoder.layers.requires_grad_(True)
    out = learner(ids(7, 8, 9), labels=ids(7, 8, 9))
    out.loss.backward()
    assert out.cache is None and learner.decoder.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pad", [-100, IMAGE, AUDIO, VOCAB, 10**6])
def test_the_ids_of_padding_change_nothing(vita, pad):
    mask = torch.tensor([[0, 1, 1]])
    want = vita(ids(7, 8)).logits
    torch.testing.assert_close(vita(ids(pad, 7, 8), attention_mask=mask).logits[:, 1:], want, **CLOSE)


def test_unknown_fields_embeddings_of_another_width_and_a_stride_of_zero_are_refused(vita):
    with pytest.raises(ValueError, match="picture"):
        vita.respond_batch([{"prompt": "x", "picture": "y"}])
    with pytest.raises(ValueError, match=f"{WIDTH}"):
        vita(inputs_embeds=noise(1, 2, WIDTH + 1))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        vita(ids(IMAGE), images=TILE, shared_v_pid_stride=0)


# ---- the entry points and the one loop

QUESTION = {
    "prompt": "<image> what is this <audio>",
    "images": [noise(2, 3, PIXELS, PIXELS)],
    "audios": [noise(30, BINS)],
    "raw": True,
}


def question_arguments(vita):
    """The arguments of a forward pass for `QUESTION`, written by hand."""
    x = ids(IMAGE, *vita.tokenizer("what is this").input_ids, AUDIO)
    return x, {"images": QUESTION["images"], "audios": {"audios": QUESTION["audios"]}}


def likeliest_tokens(vita, x, count, **media):
    """The likeliest next token of a pass over everything so far, ``count`` times: the slow oracle of the loop."""
    new = []
    for _ in range(count):
        new.append(int(vita(torch.cat([x, torch.tensor([new], dtype=torch.long)], 1), **media).logits[0, -1].argmax()))
    return new


def test_generate_respond_respond_batch_answer_and_streaming_give_the_tokens_of_the_loop(vita):
    x, media = question_arguments(vita)
    want, streamed, options = likeliest_tokens(vita, x, 6, **media), [], {"max_new_tokens": 6, "eos_token_id": ()}
    request = Request(**QUESTION)
    assert [int(step.ids) for step in vita.steps(vita.inputs(Batch(x, **media)), Sampling(**options))] == want
    assert vita.generate(x, **media, **options, stream=streamed.append).tolist() == [want]
    assert [int(step) for step in streamed] == want
    *_, [answer] = vita.answer([vita.prepare(request)], Sampling(**options))
    assert answer.token_ids == want
    text = " ".join(map(str, want))
    assert vita.respond(request.prompt, request.images, request.audios, raw=True, **options) == text
    other = Request("one two", raw=True)
    assert vita.respond_batch([other, request, QUESTION], **options)[1:] == [text, text]
    assert vita.respond_batch([]) == []


def test_all_entry_points_draw_the_same_tokens_from_the_same_seed(vita):
    x, media = question_arguments(vita)
    options = {"max_new_tokens": 9, "temperature": 2.0, "top_k": 20, "repetition_penalty": 1.3, "eos_token_id": ()}

    def generator():
        return torch.Generator().manual_seed(3)

    want = vita.generate(x, **media, **options, generator=generator())[0].tolist()
    assert want != vita.generate(x, **media, max_new_tokens=9, eos_token_id=())[0].tolist()
    *_, [answer] = vita.answer([vita.prepare(Request(**QUESTION))], Sampling(**options, generator=generator()))
    assert answer.token_ids == want
    assert vita.respond_batch([QUESTION], **options, generator=generator()) == [" ".join(map(str, want))]


def test_the_logits_of_a_step_are_those_that_its_token_was_chosen_from(vita):
    x, media = question_arguments(vita)
    new = likeliest_tokens(vita, x, 4, **media)
    want = vita(torch.cat([x, ids(*new)], 1), **media).logits[0, -5:-1]
    options = Sampling(max_new_tokens=4, eos_token_id=())
    got = [step.logits[0] for step in vita.steps(vita.inputs(Batch(x, **media)), options)]
    torch.testing.assert_close(torch.stack(got), want, **CLOSE)


def test_a_request_is_spliced_once_and_each_tile_sound_and_position_is_computed_once(vita):
    tiles, sounds, positions = [], [], []
    hooks = [
        vita.vision.register_forward_pre_hook(lambda module, inputs: tiles.extend(inputs[0])),
        vita.audio.register_forward_pre_hook(lambda module, inputs: sounds.extend(inputs[0])),
        vita.decoder.register_forward_pre_hook(lambda module, inputs: positions.append(inputs[0].shape[1])),
    ]
    with patch("vita_ref.inputs.splice", wraps=splice) as calls:
        vita.respond_batch([QUESTION], max_new_tokens=5, eos_token_id=())
    for hook in hooks:
        hook.remove()
    assert calls.call_count == 1
    assert torch.stack(tiles).equal(QUESTION["images"][0]) and torch.stack(sounds).equal(QUESTION["audios"][0][None])
    assert positions == [2 * VIEW + 3 + 3, 1, 1, 1, 1]  # 3 words, and 3 positions of 30 frames; the last token is not read


def test_embeddings_of_a_sound_are_answered_without_an_audio_encoder():
    text_only, rows, options = tiny_vita(vision=None, audio=None), noise(4, WIDTH), {"max_new_tokens": 5, "eos_token_id": ()}
    embeds = torch.cat([rows[None], text_only.embed(ids(*text_only.tokenizer("what is this").input_ids))], 1)
    want = text_only.generate(inputs_embeds=embeds, **options)[0]
    assert text_only.respond("what is this", audios=[rows], raw=True, **options) == text_only.tokenizer.decode(want)


def test_the_answers_to_different_images_and_sounds_differ(vita):
    """Media do reach the answer: with another image, another sound, or none, the tokens are others."""
    options = {"raw": True, "max_new_tokens": 8, "eos_token_id": ()}
    image, sound = QUESTION["images"][0], QUESTION["audios"][0]
    answers = [
        vita.respond("what is this", [image], [sound], **options),
        vita.respond("what is this", [-image], [sound], **options),
        vita.respond("what is this", [image], [-sound], **options),
        vita.respond("what is this", [image], **options),
        vita.respond("what is this", audios=[sound], **options),
    ]
    assert len(set(answers)) == len(answers)


def test_forty_equal_calls_give_one_bit_pattern(vita):
    x, media = question_arguments(vita)
    padded = torch.tensor([[0, 7, 8], [9, 3, 4]])
    mask = padded.ne(0)

    def bits():
        steps = vita.steps(vita.inputs(Batch(x, **media)), Sampling(max_new_tokens=3, eos_token_id=()))
        logits = [vita(x, **media).logits, vita(padded, attention_mask=mask).logits, *(step.logits for step in steps)]
        return b"".join(each.numpy().tobytes() for each in logits)

    assert len({bits() for _ in range(40)}) == 1
