"""A row of a batch has the answer that it has alone, for any other rows and for padding on either side.

The oracle of nearly every test is the same model with this row alone and without padding.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_model import (
    AUDIO,
    BINS,
    CLOSE,
    CONFIG,
    EOS,
    IMAGE,
    PIXELS,
    VOCAB,
    WIDTH,
    ids,
    noise,
    tiny_vita,
)

from vita_ref.inputs import audio_features

few = settings(max_examples=10, deadline=None)
sides = st.sampled_from(["left", "right"])
MODELS = {side: tiny_vita(tokenizer_padding_side=side) for side in ("left", "right")}
MODEL = MODELS["right"]


@st.composite
def batches(draw, texts_only=False):
    """Rows of ids, and for each row its images and its filter banks."""
    seed, media = draw(st.integers(0, 2**31)), [] if texts_only else [IMAGE, AUDIO]
    token = st.sampled_from([*media, *range(VOCAB)])
    rows = draw(st.lists(st.lists(token, min_size=1, max_size=7), min_size=2, max_size=4))
    images, sounds = [], []
    for i, row in enumerate(rows):
        images.append([noise(3, PIXELS, PIXELS, seed=seed + 31 * i + j) for j in range(row.count(IMAGE))])
        frames = [draw(st.integers(7, 40)) for _ in range(row.count(AUDIO))]
        sounds.append([noise(n, BINS, seed=seed + 31 * i + j) for j, n in enumerate(frames)])
    return SimpleNamespace(rows=[torch.tensor(r) for r in rows], images=images, sounds=sounds, seed=seed)


def arguments(batch, order=None):
    """The arguments of the whole batch, or of the rows in ``order``."""
    order = range(len(batch.rows)) if order is None else order
    images = [x for i in order for x in batch.images[i]]
    sounds = [x for i in order for x in batch.sounds[i]]
    return {
        "input_ids": [batch.rows[i] for i in order],
        "images": images or None,
        "audios": {"audios": sounds} if sounds else None,
    }


def as_padded(batch, side, more):
    """The batch's ids as one tensor [B, S] with any ids for padding, and the mask."""
    longest = max(map(len, batch.rows)) + more
    x = torch.randint(0, VOCAB, (len(batch.rows), longest), generator=torch.Generator().manual_seed(batch.seed))
    mask = torch.zeros_like(x)
    for i, row in enumerate(batch.rows):
        here = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        x[i, here], mask[i, here] = row, 1
    return x, mask


def real_logits(out):
    """The logits of each row without its padding."""
    return [logits[s[0][1] : s[-1][2]] for logits, s in zip(out.logits, out.segments)]


# ---- one pass


@few
@given(batches(), sides, st.sampled_from([None, 2, 3]))
def test_the_logits_of_a_row_are_those_it_has_alone(batch, side, stride):
    vita = MODELS[side]
    got = real_logits(vita(**arguments(batch), shared_v_pid_stride=stride))
    for i, logits in enumerate(got):
        alone = vita(**arguments(batch, [i]), shared_v_pid_stride=stride).logits[0]
        torch.testing.assert_close(logits, alone, **CLOSE)


@few
@given(batches(texts_only=True), sides, st.integers(0, 5))
def test_padded_text_has_the_logits_of_unpadded_text(batch, side, more):
    x, mask = as_padded(batch, side, more)
    out = MODEL(x, attention_mask=mask)
    for row, logits, kept in zip(batch.rows, out.logits, mask.bool()):
        torch.testing.assert_close(logits[kept], MODEL(row[None]).logits[0], **CLOSE)


@few
@given(batches(texts_only=True), st.data())
def test_padding_between_tokens_changes_nothing(batch, data):
    row = batch.rows[0]
    columns = sorted(data.draw(st.permutations(range(len(row) + 4)))[: len(row)])
    x, mask = torch.zeros(1, len(row) + 4, dtype=torch.long), torch.zeros(1, len(row) + 4, dtype=torch.bool)
    x[0, columns], mask[0, columns] = row, True
    torch.testing.assert_close(MODEL(x, attention_mask=mask).logits[mask], MODEL(row[None]).logits[0], **CLOSE)


@few
@given(st.integers(1, 4), st.integers(1, 3), sides, st.sampled_from([0.0, 1e4, -1e4]))
def test_the_content_of_padding_changes_nothing(length, more, side, garbage):
    embeds, extra = noise(2, length, WIDTH), torch.full((2, more, WIDTH), garbage)
    parts = [extra, embeds] if side == "left" else [embeds, extra]
    mask = torch.cat([torch.full(p.shape[:2], p is embeds) for p in parts], 1)
    got = MODEL(inputs_embeds=torch.cat(parts, 1), attention_mask=mask, output_attentions=True)
    torch.testing.assert_close(got.logits[mask].view(2, length, -1), MODEL(inputs_embeds=embeds).logits, **CLOSE)
    for weights in got.attentions:
        of_real_queries = weights.transpose(1, 2)[mask]  # [2*length, H, S]
        assert not of_real_queries[..., ~mask[0]].any()


@few
@given(batches(), sides, st.randoms(use_true_random=False))
def test_permuting_a_batch_permutes_its_answers(batch, side, random):
    order = list(range(len(batch.rows)))
    random.shuffle(order)
    options = {"max_new_tokens": 4, "eos_token_id": ()}
    answers = MODELS[side].generate(**arguments(batch), **options)
    assert MODELS[side].generate(**arguments(batch, order), **options).equal(answers[order])


def test_sounds_of_different_lengths_give_in_a_batch_what_each_gives_alone():
    sounds = [noise(n, BINS, seed=n) for n in (7, 40, 16, 23, 31)]
    padded = torch.stack([torch.nn.functional.pad(s, (0, 0, 0, 50 - len(s)), value=3.0) for s in sounds])
    got = MODEL.encode_audios(padded, [len(s) for s in sounds])
    for sound, embeds, n in zip(sounds, got.embeds, got.lengths.tolist()):
        torch.testing.assert_close(embeds[:n], MODEL.encode_audios(sound[None], [len(sound)]).embeds[0], **CLOSE)
    rows = audio_features(MODEL, {"audios": sounds})
    assert [len(r) for r in rows] == got.lengths.tolist() == [1, 5, 2, 3, 4]


# ---- the loss


@few
@given(batches())
def test_the_loss_does_not_depend_on_the_side_of_the_padding(batch):
    """The first token of a row is not counted: nothing predicts it, and padding does not either."""
    labels = [row.clamp(min=-100) for row in batch.rows]
    left, right = (MODELS[side](**arguments(batch), labels=labels) for side in ("left", "right"))
    costs = []
    for i, row in enumerate(batch.rows):
        alone = MODELS["right"](**arguments(batch, [i]), labels=[labels[i]])
        columns = [k for kind, start, end in alone.segments[0] if kind == "text" for k in range(start, end)]
        log_probs = alone.logits[0].log_softmax(-1)
        costs += [-log_probs[k - 1, token] for k, token in zip(columns, row[row >= 0]) if k > 0]
    assume(costs)
    for out in (left, right):
        torch.testing.assert_close(out.loss, torch.stack(costs).mean(), **CLOSE)


@few
@given(batches(texts_only=True), sides, st.integers(0, 3))
def test_the_loss_of_padded_text_is_that_of_its_rows(batch, side, more):
    x, mask = as_padded(batch, side, more)
    costs = []
    for row in batch.rows:
        log_probs = MODEL(row[None]).logits[0].log_softmax(-1)
        costs += [-log_probs[k, token] for k, token in enumerate(row[1:])]
    assume(costs)
    loss = MODEL(x, attention_mask=mask, labels=x.masked_fill(mask == 0, -100)).loss
    torch.testing.assert_close(loss, torch.stack(costs).mean(), **CLOSE)


# ---- continuing from a cache


@few
@given(batches(), sides, st.sampled_from([None, 2]), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_chunks_after_a_padded_prompt_give_the_logits_of_one_pass_over_everything(batch, side, stride, chunks):
    """Prompts of different lengths, padded on either side, also with shared position ids; then chunks of text."""
    vita, n = MODELS[side], sum(chunks)
    more = torch.randint(0, VOCAB, (len(batch.rows), n), generator=torch.Generator().manual_seed(batch.seed))
    cache, got = vita(**arguments(batch), shared_v_pid_stride=stride).cache, []
    for chunk in more.split(chunks, 1):
        out = vita(chunk, cache=cache)
        got.append(out.logits)
    longer = SimpleNamespace(
        rows=[torch.cat(pair) for pair in zip(batch.rows, more)], images=batch.images, sounds=batch.sounds, seed=batch.seed
    )
    whole = real_logits(vita(**arguments(longer), shared_v_pid_stride=stride))
    torch.testing.assert_close(torch.cat(got, 1), torch.stack([logits[-n:] for logits in whole]), **CLOSE)


@few
@given(batches(), sides, st.integers(1, 4))
def test_after_a_truncation_the_same_tokens_give_the_same_bits(batch, side, n):
    vita = MODELS[side]
    more = torch.randint(0, VOCAB, (len(batch.rows), n), generator=torch.Generator().manual_seed(batch.seed))
    cache = vita(**arguments(batch)).cache
    length, positions = cache.length, cache.next_positions.tolist()
    once = vita(more, cache=cache).logits
    cache.truncate(length)
    assert cache.next_positions.tolist() == positions
    assert vita(more, cache=cache).logits.equal(once)


@few
@given(batches(), batches(), sides)
def test_images_and_sounds_may_follow_a_cached_prompt(first, second, side):
    count = min(len(first.rows), len(second.rows))
    order, vita = range(count), MODELS[side]
    cache = vita(**arguments(first, order)).cache
    got = real_logits(vita(**arguments(second, order), cache=cache))
    for i, logits in enumerate(got):
        joined = SimpleNamespace(
            rows=[torch.cat([first.rows[i], second.rows[i]])],
            images=[first.images[i] + second.images[i]],
            sounds=[first.sounds[i] + second.sounds[i]],
        )
        whole = vita(**arguments(joined)).logits[0]
        torch.testing.assert_close(logits, whole[-len(logits) :], **CLOSE)


@few
@given(batches(texts_only=True), sides, st.integers(1, 3))
def test_a_mask_beside_a_cache_may_cover_the_new_columns_or_all_columns(batch, side, n):
    x, mask = as_padded(batch, side, 1)
    more = torch.randint(0, VOCAB, (len(x), n), generator=torch.Generator().manual_seed(batch.seed))
    results = []
    for given_mask in (None, torch.ones(len(x), n), torch.cat([mask, torch.ones(len(x), n)], 1)):
        cache = MODEL(x, attention_mask=mask).cache
        results.append(MODEL(more, cache=cache, attention_mask=given_mask).logits)
    assert results[0].equal(results[1]) and results[0].equal(results[2])


# ---- answers


@few
@given(batches(), sides, st.sampled_from([None, 3]))
def test_a_row_has_the_answer_that_it_has_alone(batch, side, stride):
    options = {"max_new_tokens": 5, "eos_token_id": (), "shared_v_pid_stride": stride}
    got = MODELS[side].generate(**arguments(batch), **options)
    alone = [MODELS["right"].generate(**arguments(batch, [i]), **options)[0] for i in range(len(batch.rows))]
    assert got.equal(torch.stack(alone))


@few
@given(batches(texts_only=True), sides, st.integers(0, 5))
def test_the_answer_depends_neither_on_the_side_nor_on_the_amount_of_padding(batch, side, more):
    x, mask = as_padded(batch, side, more)
    options = {"max_new_tokens": 5, "eos_token_id": ()}
    alone = [MODEL.generate(row[None], **options)[0] for row in batch.rows]
    assert MODEL.generate(x, attention_mask=mask, **options).equal(torch.stack(alone))


@few
@given(batches(), sides)
def test_each_token_of_an_answer_is_the_likeliest_in_one_pass_over_prompt_and_answer(batch, side):
    vita, n = MODELS[side], 4
    new = vita.generate(**arguments(batch), max_new_tokens=n, eos_token_id=())
    longer = SimpleNamespace(rows=[torch.cat(p) for p in zip(batch.rows, new)], images=batch.images, sounds=batch.sounds)
    for logits, answer in zip(real_logits(vita(**arguments(longer))), new):
        assert logits[-n - 1 : -1].argmax(-1).equal(answer)


def answers(vita, rows, **options):
    """The answer of each row alone, with its end token."""
    return [vita.generate(row[None], **options)[0].tolist() for row in rows]


def test_rows_that_end_early_are_filled_with_padding_and_do_not_stop_the_others():
    rows = [torch.tensor(r) for r in ([7], [8, 9, 10], [11, 12], [30, 31, 2, 3], [40])]
    free = torch.tensor(answers(MODEL, rows, max_new_tokens=8, eos_token_id=()))
    eos = [int(free[0, 2]), int(free[1, 4])]
    ended = answers(MODEL, rows, max_new_tokens=8, eos_token_id=eos)
    assert len({len(a) for a in ended}) > 1  # the rows do end at different steps
    got = MODEL.generate(rows, max_new_tokens=8, eos_token_id=eos, pad_token_id=3).tolist()
    longest = max(map(len, ended))
    assert got == [a + [3] * (longest - len(a)) for a in ended]
    assert all(a[-1] in eos or len(a) == 8 for a in ended)
    assert all(not set(a[:-1]) & set(eos) for a in ended)


def test_generation_stops_when_every_row_has_ended():
    first = int(MODEL.generate(ids(7, 8), max_new_tokens=1, eos_token_id=()))
    x, steps = torch.tensor([[7, 8], [7, 8]]), []
    assert MODEL.generate(x, max_new_tokens=9, eos_token_id=first, stream=steps.append).tolist() == [[first]] * 2
    assert len(steps) == 1
    whole = MODEL.generate(x, max_new_tokens=9, eos_token_id=())
    assert whole.shape == (2, 9) and (whole[:, 0] == first).all()


def test_the_end_and_padding_tokens_default_to_those_of_the_checkpoint():
    new = MODEL.generate(ids(7, 8), max_new_tokens=6, eos_token_id=())[0].tolist()
    other = MODEL.generate(ids(9, 3), max_new_tokens=6, eos_token_id=())[0].tolist()
    end = next(i for i, token in enumerate(new) if token not in other)
    for pad, filled in ((4, 4), (None, new[end])):  # without a padding token it is the end token
        vita = tiny_vita(eos_token_ids=(new[end],), pad_token_id=pad)
        got = vita.generate(torch.tensor([[7, 8], [9, 3]]), max_new_tokens=6)
        assert got.tolist() == [new[: end + 1] + [filled] * (5 - end), other]


def test_without_end_tokens_an_answer_has_the_maximal_length():
    new = MODEL.generate(ids(7, 8), max_new_tokens=5, eos_token_id=())[0].tolist()
    vita = tiny_vita(eos_token_ids=(new[0],))
    assert vita.generate(ids(7, 8), max_new_tokens=5).tolist() == [new[:1]]
    assert vita.generate(ids(7, 8), max_new_tokens=5, eos_token_id=()).tolist() == [new]


@few
@given(batches(), sides)
def test_the_streamed_ids_are_the_returned_ids(batch, side):
    steps = []
    got = MODELS[side].generate(**arguments(batch), max_new_tokens=4, eos_token_id=[EOS, 9], stream=steps.append)
    assert torch.stack(steps, 1).equal(got) and all(step.shape == (len(batch.rows),) for step in steps)


def test_include_prompt_puts_the_input_ids_in_front():
    x, mask = torch.tensor([[0, 7, 8], [9, 10, 11]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 4, "eos_token_id": ()}
    new = MODEL.generate(x, **options)
    assert MODEL.generate(x, include_prompt=True, **options).equal(torch.cat([x, new], 1))


@few
@given(batches(texts_only=True), sides, st.sampled_from([0.5, 1.7, 8.0]))
def test_the_repetition_penalty_counts_the_prompt_and_the_answer_of_its_row_and_no_padding(batch, side, penalty):
    """The oracle computes the whole row again at each step and lowers the logits of the tokens in it."""
    x, mask = as_padded(batch, side, 2)
    got = MODEL.generate(x, attention_mask=mask, max_new_tokens=4, eos_token_id=(), repetition_penalty=penalty)
    for row, answer in zip(batch.rows, got.tolist()):
        whole = row.tolist()
        for token in answer:
            logits = MODEL(ids(*whole)).logits[0, -1]
            for used in set(whole):
                logits[used] = logits[used] / penalty if logits[used] > 0 else logits[used] * penalty
            assert int(logits.argmax()) == token
            whole.append(token)


def test_a_strong_penalty_repeats_no_token():
    options = {"max_new_tokens": 20, "eos_token_id": (), "repetition_penalty": 1e6}
    tokens = [7, 8, *MODEL.generate(ids(7, 8, IMAGE), images=noise(1, 3, PIXELS, PIXELS), **options)[0].tolist()]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("pad", [-1, -100, 10**6])
def test_the_padding_id_of_rows_that_ended_may_be_any_number(pad):
    x, options = torch.tensor([[7, 8], [9, 3]]), {"max_new_tokens": 6, "repetition_penalty": 1.5}
    whole = MODEL.generate(x, eos_token_id=(), **options)
    end = next(int(t) for t in whole[0] if t not in whole[1])
    got, length = MODEL.generate(x, eos_token_id=end, pad_token_id=pad, **options), whole[0].tolist().index(end) + 1
    assert got[1].equal(whole[1])
    assert got[0].tolist() == whole[0, :length].tolist() + [pad] * (6 - length)


def test_the_loss_counts_new_columns_where_the_mask_covers_the_cached_ones_too():
    first, new = torch.tensor([[0, 7, 8], [4, 9, 3]]), torch.tensor([[5, 6, 2], [1, 2, 9]])
    cache = MODEL.decoder.new_cache(2)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    MODEL(first, attention_mask=mask, cache=cache)
    every = torch.cat([mask, torch.ones(2, 3, dtype=torch.bool)], 1)
    out = MODEL(new, attention_mask=every, cache=cache, labels=new)
    want = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), new[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)


def test_the_penalty_counts_the_answer_only_if_the_prompt_is_embeddings():
    options = {"max_new_tokens": 9, "repetition_penalty": 1e6, "eos_token_id": ()}
    tokens = MODEL.generate(inputs_embeds=MODEL.embed(ids(7, 8)), **options)[0].tolist()
    first = MODEL.generate(ids(7, 8), max_new_tokens=1, eos_token_id=())
    assert tokens[0] == int(first) and len(set(tokens)) == len(tokens)


def test_draws_come_from_the_given_generator():
    def draw(seed, **options):
        options |= {"do_sample": True, "generator": torch.Generator().manual_seed(seed)}
        return MODEL.generate(x, max_new_tokens=12, eos_token_id=(), **options)

    x = torch.tensor([[7, 8], [9, 3]])
    greedy = MODEL.generate(x, max_new_tokens=12, eos_token_id=())
    assert draw(1, temperature=2.0).equal(draw(1, temperature=2.0))
    assert not draw(1, temperature=2.0).equal(draw(2, temperature=2.0))
    assert all(draw(1, **kind).equal(greedy) for kind in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-6}))


@few
@given(batches(), batches(), sides, st.integers(0, 99))
def test_a_sampled_row_does_not_depend_on_its_neighbours(batch, other, side, seed):
    """The row stays at its place in the batch; all other rows are replaced, with their images and sounds."""
    row = seed % min(len(batch.rows), len(other.rows))
    options = {"max_new_tokens": 6, "eos_token_id": (), "temperature": 2.0}
    replaced = [other.rows[:], other.images[:], other.sounds[:]]
    for values, kept in zip(replaced, (batch.rows, batch.images, batch.sounds)):
        values[row] = kept[row]
    changed = SimpleNamespace(rows=replaced[0], images=replaced[1], sounds=replaced[2])
    one, two = (
        MODELS[side].generate(**arguments(each), **options, generator=torch.Generator().manual_seed(seed))[row]
        for each in (batch, changed)
    )
    assert one.equal(two)


def test_generating_does_not_change_the_state_of_torchs_own_generator():
    before = torch.get_rng_state()
    MODEL.generate(ids(7), max_new_tokens=3, eos_token_id=(), do_sample=True, generator=torch.Generator().manual_seed(1))
    assert torch.get_rng_state().equal(before)


def test_new_tokens_continue_the_given_position_ids():
    positions = torch.tensor([[0, 0, 5, 9]])
    x = ids(7, 8, 9, 10)
    new = MODEL.generate(x, position_ids=positions, max_new_tokens=4, eos_token_id=())
    whole = MODEL(torch.cat([x, new], 1), position_ids=torch.cat([positions, ids(10, 11, 12, 13)], 1)).logits
    assert whole[0, 3:-1].argmax(-1).equal(new[0])


def test_a_prompt_that_is_too_long_keeps_its_beginning():
    short = tiny_vita(tokenizer_model_max_length=5)
    image = noise(1, 3, PIXELS, PIXELS)
    assert short(ids(7, IMAGE, 8, 9), images=image).segments == [[("text", 0, 1), ("image", 1, 5)]]
    options = {"images": image, "max_new_tokens": 3, "eos_token_id": ()}
    assert short.generate(ids(7, IMAGE, 8, 9), **options).equal(MODEL.generate(ids(7, IMAGE), **options))


@pytest.mark.parametrize("tied", [False, True])
def test_rows_have_their_own_answers_with_tied_embeddings_too(tied):
    vita = tiny_vita(decoder=replace(CONFIG.decoder, tie_word_embeddings=tied))
    rows = [torch.tensor(r) for r in ([7], [8, 9, 10])]
    got = vita.generate(rows, max_new_tokens=4, eos_token_id=())
    assert got.tolist() == answers(vita, rows, max_new_tokens=4, eos_token_id=())
