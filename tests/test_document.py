"""The scenarios of upstream's language-model-layer document, run on tiny weights through the public interface.

The document says 4096, 1025 and 448 where these tests have WIDTH, VIEW and PIXELS. Its texts become as many ids as it
counts (8 for the first one). A placeholder is one id.
"""

import pytest
import torch
from test_model import (
    AUDIO,
    BINS,
    CLOSE,
    CONFIG,
    IMAGE,
    PIXELS,
    VIEW,
    VOCAB,
    WIDTH,
    WordTokenizer,
    ids,
    noise,
    tiny_vita,
)

from vita_ref.prompt import tokenizer_image_audio_token, tokenizer_image_token

SAMPLED = {"do_sample": True, "temperature": 0.7}
TOKENIZER, HEADS = WordTokenizer(), CONFIG.decoder.num_attention_heads
TEXTS = ["What is in this <image> ?", "Describe this <audio>", "Hello, how are you?", "<image><audio>"]


@pytest.fixture(scope="module")
def vita():
    return tiny_vita(eos_token_ids=())


def picture(seed=1):
    return noise(3, PIXELS, PIXELS, seed=seed)


def sound_rows(rows=60, seed=2):
    """A sound as the document gives it: embeddings."""
    return noise(rows, WIDTH, seed=seed)


def seeds(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def drawn():
    return torch.Generator().manual_seed(0)


def greedy_without_cache(vita, x, steps, **media):
    """The likeliest next token of a whole pass, so many times: the slow oracle of `generate`."""
    new = []
    for _ in range(steps):
        new.append(int(vita(torch.cat([x, torch.tensor([new], dtype=torch.long)], 1), **media).logits[0, -1].argmax()))
    return torch.tensor([new])


def tokenize(text):
    """Placeholders become indices, as the document's branches do it."""
    if "<audio>" in text:
        return tokenizer_image_audio_token(text, TOKENIZER)
    if "<image>" in text:
        return tokenizer_image_token(text, TOKENIZER)
    return TOKENIZER(text, return_tensors="pt").input_ids[0].tolist()


# ---- one input


def test_text_generation_with_its_prompt_is_8_and_50_tokens(vita):
    x = ids(*range(20, 28))
    out = vita.generate(x, max_new_tokens=50, include_prompt=True, pad_token_id=0, generator=drawn(), **SAMPLED)
    assert out.shape == (1, 58) and out[:, :8].equal(x)
    assert vita.generate(x, max_new_tokens=50, generator=drawn(), **SAMPLED).equal(out[:, 8:])


def test_the_likeliest_next_tokens_come_from_the_last_logits(vita):
    x = ids(*range(20, 28))
    logits = vita(x).logits
    assert logits.shape == (1, 8, VOCAB) and logits.dtype == torch.float32
    likeliest = logits[0, -1].argsort(descending=True)[:5].tolist()
    draws = [int(vita.generate(x, max_new_tokens=1, do_sample=True, top_k=5, generator=g)) for g in seeds(60)]
    assert likeliest[0] == int(vita.generate(x, max_new_tokens=1))
    assert likeliest[0] in draws and set(draws) <= set(likeliest) and len(set(draws)) > 1


def test_an_image_question_with_its_prompt_is_9_and_100_tokens(vita):
    x = ids(20, 21, 22, 23, 24, 25, 26, IMAGE, 27)
    out = vita.generate(
        x, images=picture()[None], max_new_tokens=100, include_prompt=True, generator=drawn(), **SAMPLED
    )
    assert out.shape == (1, 109) and (out == IMAGE).nonzero().tolist() == [[0, 7]]
    assert vita.generate(x, images=picture()[None], max_new_tokens=100, generator=drawn(), **SAMPLED).equal(out[:, 9:])


def test_an_audio_question_with_its_prompt_is_10_and_100_tokens(vita):
    x = ids(20, 21, 22, 23, 24, 25, 26, 27, AUDIO, 28)
    audios = {"audios": sound_rows()[None], "lengths": [60]}
    options = {"audios": audios, "max_new_tokens": 100} | SAMPLED
    out = vita.generate(x, include_prompt=True, generator=drawn(), **options)
    assert out.shape == (1, 110) and (out == AUDIO).nonzero().tolist() == [[0, 8]]
    assert vita.generate(x, generator=drawn(), **options).equal(out[:, 10:])
    assert vita(x, audios=audios).logits.shape == (1, 9 + 60, VOCAB)


@pytest.mark.parametrize("kind, size", [("image", VIEW), ("audio", 60)])
def test_the_segments_say_where_the_attention_to_an_image_or_a_sound_stands(vita, kind, size):
    x = ids(20, 21, IMAGE if kind == "image" else AUDIO, 22, 23)
    given = {"images": picture()[None]} if kind == "image" else {"audios": {"audios": sound_rows()[None], "lengths": [60]}}
    out = vita(x, output_attentions=True, **given)
    start, end = next((a, b) for k, a, b in out.segments[0] if k == kind)
    assert (start, end) == (2, 2 + size) and len(out.attentions) == CONFIG.decoder.num_hidden_layers
    for weights in out.attentions:
        assert weights.shape == (1, HEADS, size + 4, size + 4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, HEADS, size + 4))
        assert not weights.triu(1).any()
    torch.testing.assert_close(out.logits, vita(x, **given).logits, **CLOSE)  # maps do not change the logits
    maps = torch.stack(out.attentions)[:, 0]  # [layers, HEADS, size + 4, size + 4]
    assert (maps[:, :, end:, start:end] > 0).all()  # the text after the medium attends to each of its positions
    assert (maps[:, :, :start, start:end] == 0).all()  # the text before it to none
    assert (maps[:, :, start:end, end:] == 0).all()  # and the medium to nothing after itself


def test_the_loss_is_that_of_the_shifted_labels(vita):
    x = torch.tensor([[20, 21, 22, 23], [24, 25, 26, 27]])
    out = vita(x, labels=x)
    shifted = torch.nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, VOCAB), x[:, 1:].reshape(-1))
    torch.testing.assert_close(out.loss, shifted)


def test_the_loss_of_a_spliced_prompt_counts_its_text_alone(vita):
    x = ids(20, IMAGE, 21, AUDIO, 22)
    audios = {"audios": sound_rows(6)[None], "lengths": [6]}
    out = vita(x, images=picture()[None], audios=audios, labels=x)
    chances = out.logits[0].log_softmax(-1)  # t iiii t aaaaaa t
    torch.testing.assert_close(out.loss, -(chances[4, 21] + chances[11, 22]) / 2)


# ---- several media, and no text


def test_two_images_in_a_list(vita):
    x = torch.tensor([tokenize("Compare these images: <image> and <image>")])
    out = vita(x, images=[picture(1), picture(2)])
    assert [kind for kind, *_ in out.segments[0]] == ["text", "image", "text", "image"]
    assert out.logits.shape[1] == 4 + 2 * VIEW
    assert not out.logits.equal(vita(x, images=[picture(2), picture(1)]).logits)
    want = greedy_without_cache(vita, x, 5, images=[picture(1), picture(2)])
    assert vita.generate(x, images=[picture(1), picture(2)], max_new_tokens=5).equal(want)


def test_two_sounds_of_50_and_60_rows(vita):
    x = torch.tensor([tokenize("Listen to this <audio> and then this <audio>")])
    rows = [sound_rows(50, seed=3), sound_rows(60, seed=4)]
    as_list = vita(x, audios={"audios": rows, "lengths": [50, 60]})
    assert as_list.segments[0] == [("text", 0, 3), ("audio", 3, 53), ("text", 53, 56), ("audio", 56, 116)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [2, 60, D], as far as torch.stack can go
    assert vita(x, audios={"audios": padded, "lengths": [50, 60]}).logits.equal(as_list.logits)


def test_an_image_alone_is_the_whole_prompt(vita):
    x = torch.tensor([tokenize("<image>")])
    assert x.tolist() == [[IMAGE]]
    out = vita(x, images=picture()[None])
    assert out.logits.shape == (1, VIEW, VOCAB) and out.segments == [[("image", 0, VIEW)]]
    want = greedy_without_cache(vita, x, 20, images=picture()[None])
    assert vita.generate(x, images=picture()[None], max_new_tokens=20).equal(want)


def test_a_sound_alone_is_the_whole_prompt_and_75_of_60_rows_are_60(vita):
    x = torch.tensor([tokenize("<audio>")])
    assert x.tolist() == [[AUDIO]]
    out = vita(x, audios={"audios": sound_rows()[None], "lengths": [75]})
    assert out.segments == [[("audio", 0, 60)]]
    assert out.logits.equal(vita(x, audios={"audios": sound_rows()[None], "lengths": [60]}).logits)


def test_an_image_and_a_sound_without_text(vita):
    x = torch.tensor([tokenize("<image><audio>")])
    assert x.tolist() == [[IMAGE, AUDIO]]
    given = {"images": picture()[None], "audios": {"audios": sound_rows()[None], "lengths": [75]}}
    assert vita(x, **given).segments == [[("image", 0, VIEW), ("audio", VIEW, VIEW + 60)]]
    assert vita.generate(x, max_new_tokens=7, **given).equal(greedy_without_cache(vita, x, 7, **given))


def test_filter_banks_in_the_place_of_embeddings(vita):
    banks = noise(1, 95, BINS)  # (95 + 1) / 8 = 12 positions
    out = vita(ids(20, AUDIO), audios={"audios": banks, "lengths": [95], "lengths_for_llm": [60]})
    assert out.segments[0] == [("text", 0, 1), ("audio", 1, 13)]


# ---- the batch functions


def process_batch(vita, texts, images, audios, **options):
    """The document's first one: ids padded on the right, all media in one list in the order of the rows."""
    rows = [torch.tensor(tokenize(text)) for text in texts]
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    pictures, sounds = [x for x in images if x is not None], [x for x in audios if x is not None]
    audio_inputs = {"audios": torch.stack(sounds), "lengths": [len(s) for s in sounds]} if sounds else None
    return vita.generate(x, images=pictures or None, audios=audio_inputs, attention_mask=mask, **options)


def process_one_by_one(vita, texts, images, audios, **options):
    """The document's second one."""
    answers = []
    for text, image, audio in zip(texts, images, audios):
        given = {} if image is None else {"images": image[None]}
        given |= {} if audio is None else {"audios": {"audios": audio[None], "lengths": [len(audio)]}}
        answers.append(vita.generate(torch.tensor([tokenize(text)]), **given, **options))
    return torch.cat(answers)


MIXED = {
    "images": [picture(1), None, None, picture(2)],
    "audios": [None, sound_rows(60, seed=3), None, sound_rows(60, seed=4)],
}


def test_a_batch_of_mixed_inputs_gives_what_each_gives_alone(vita):
    options = {"max_new_tokens": 6, "pad_token_id": 0}
    together = process_batch(vita, TEXTS, **MIXED, **options)
    assert together.shape == (4, 6)
    assert together.equal(process_one_by_one(vita, TEXTS, **MIXED, **options))


def test_the_mixed_batch_has_the_lengths_that_its_texts_and_media_have(vita):
    rows = [torch.tensor(tokenize(text)) for text in TEXTS]
    given = {"images": [x for x in MIXED["images"] if x is not None], "audios": {"audios": [sound_rows(), sound_rows()]}}
    out = vita(rows, **given)
    assert [s[-1][2] for s in out.segments] == [5 + VIEW, 2 + 60, 4, VIEW + 60]
    assert out.logits.shape == (4, VIEW + 60, VOCAB)


def test_a_placeholder_in_the_batch_that_has_no_medium_is_refused_with_both_counts(vita):
    """The document gives no sound for its second text; through ids that is a mistake, not literal text."""
    with pytest.raises(ValueError, match="2 audio placeholders, but 1 audio was given"):
        process_batch(vita, TEXTS, MIXED["images"], [None, None, None, sound_rows()], max_new_tokens=1)


def test_in_words_the_same_batch_keeps_that_placeholder_as_literal_text(vita):
    requests = [
        {"prompt": TEXTS[0], "images": [picture(1)]},
        {"prompt": TEXTS[1]},
        {"prompt": TEXTS[2]},
        {"prompt": TEXTS[3], "images": [picture(2)], "audios": [sound_rows()]},
    ]
    options = {"max_new_tokens": 6}
    together = vita.respond_batch([r | {"raw": True} for r in requests], **options)
    literal = torch.tensor([TOKENIZER(TEXTS[1]).input_ids])
    assert together[1] == TOKENIZER.decode(vita.generate(literal, **options)[0])
    alone = [vita.respond(r["prompt"], r.get("images", ()), r.get("audios", ()), **options) for r in requests]
    assert vita.respond_batch(requests, **options) == alone


def test_requests_with_filter_banks_and_with_ready_embeddings_share_a_batch(vita):
    requests = [{"prompt": "What?", "audios": [sound]} for sound in (noise(30, BINS), sound_rows(9))]
    alone = [vita.respond(r["prompt"], audios=r["audios"], max_new_tokens=5) for r in requests]
    assert vita.respond_batch(requests, max_new_tokens=5) == alone


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_embeddings_with_their_mask_are_as_good_as_ids(vita, side):
    """The document's third one; it pads on the right."""
    rows = [torch.tensor(TOKENIZER(text).input_ids) for text in ("one two three", "four", "five six")]
    embeds = [vita.decoder.embed_tokens(row) for row in rows]
    longest = max(map(len, rows))
    x, mask = torch.zeros(3, longest, WIDTH), torch.zeros(3, longest, dtype=torch.bool)
    for i, row in enumerate(embeds):
        here = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        x[i, here], mask[i, here] = row, True
    got = vita.generate(inputs_embeds=x, attention_mask=mask, max_new_tokens=8)
    alone = [vita.generate(row[None], max_new_tokens=8)[0] for row in rows]
    assert got.equal(torch.stack(alone))


def test_a_sampled_answer_in_a_batch_is_drawn_from_its_own_row(vita):
    """With top_k=3 every token is among the three likeliest after its own prompt and the tokens before it."""
    out = process_batch(vita, TEXTS, **MIXED, max_new_tokens=9, generator=drawn(), **SAMPLED, top_k=3)
    assert out.shape == (4, 9)
    greedy = 0
    for i, (text, image, audio) in enumerate(zip(TEXTS, MIXED["images"], MIXED["audios"])):
        media = {} if image is None else {"images": image[None]}
        media |= {} if audio is None else {"audios": {"audios": audio[None], "lengths": [len(audio)]}}
        read = torch.cat([torch.tensor([tokenize(text)]), out[i : i + 1, :-1]], 1)
        likeliest = vita(read, **media).logits[0, -9:].topk(3).indices  # [9, 3]
        assert (likeliest == out[i, :, None]).any(1).all()
        greedy += int((likeliest[:, 0] == out[i]).sum())
    assert greedy < 36  # not all draws are the likeliest token


@pytest.mark.parametrize(
    "text, images, audios",
    [
        ("Compare these images: <image> and <image>", 2, 0),
        ("<image>", 1, 0),
        ("<audio>", 0, 1),
        ("<image><audio>", 1, 1),
        ("Look at <image> and <image>, then listen to <audio>", 2, 1),
    ],
)
def test_a_request_takes_as_many_media_as_it_has_placeholders(vita, text, images, audios):
    options = {"max_new_tokens": 4}
    pictures, sounds = [picture(i) for i in range(images)], [sound_rows(seed=9 + i) for i in range(audios)]
    answer = vita.respond_batch([{"prompt": text, "images": pictures, "audios": sounds, "raw": True}], **options)
    given = {"images": pictures or None, "audios": {"audios": sounds} if sounds else None}
    assert answer == [TOKENIZER.decode(vita.generate(torch.tensor([tokenize(text)]), **given, **options)[0])]
    if images:
        with pytest.raises(ValueError, match=f"{images} <image> placeholders?, but {images + 1} were given"):
            vita.respond(text, images=[*pictures, picture()], audios=sounds, **options)
    if audios:
        with pytest.raises(ValueError, match=f"{audios} <audio> placeholders?, but {audios + 1} were given"):
            vita.respond(text, images=pictures, audios=[*sounds, sound_rows()], **options)
