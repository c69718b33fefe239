"""Properties of the splice: text, images and sounds in any order and number, in any batch.

The features and the embedding table are random. The oracle is `slow_splice`, which goes through a row id by id.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vita_ref.splice import runs, shared_position_ids, splice

IMAGE, AUDIO, WIDTH, VOCAB = -200, -500, 5, 11
TABLE = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENS = {"image_token": IMAGE, "audio_token": AUDIO}
few = settings(max_examples=30, deadline=None)
sides = st.sampled_from(["left", "right"])
strides = st.sampled_from([None, 1, 2, 3, 5])


def embed(ids):
    return TABLE[ids]


@st.composite
def batches(draw, least=1):
    """A batch of rows, what their placeholders take, a label for each id, and a state for each sound."""
    ids = st.sampled_from([IMAGE, AUDIO, *range(VOCAB)])
    sizes = draw(st.lists(st.integers(0, 7), min_size=least, max_size=4))
    rows = [torch.tensor(draw(st.lists(ids, min_size=n, max_size=n)), dtype=torch.long) for n in sizes]
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def features(token):
        sizes = [draw(st.integers(0, 6)) for row in rows for _ in range(int((row == token).sum()))]
        return [torch.randn(n, WIDTH, generator=random) for n in sizes]

    images, sounds = features(IMAGE), features(AUDIO)
    labels = [torch.randint(0, 1000, (len(row),), generator=random) for row in rows]
    states = [-101 - (i % 2) for i in range(len(sounds))]
    return SimpleNamespace(rows=rows, images=images, sounds=sounds, labels=labels, states=states, random=random)


def splice_batch(batch, *, rows=None, **options):
    return splice(batch.rows if rows is None else rows, embed, batch.images, batch.sounds, **TOKENS, **options)


def as_padded(batch, side, more=0):
    """The batch as one tensor with garbage for padding: ids, labels, and the mask."""
    longest = max(map(len, batch.rows)) + more
    ids = torch.randint(0, VOCAB, (len(batch.rows), longest), generator=batch.random)
    ids[:, ::2] = IMAGE  # a placeholder in the padding is padding
    labels, mask = torch.full_like(ids, 7), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, target) in enumerate(zip(batch.rows, batch.labels)):
        here = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, here], labels[i, here], mask[i, here] = row, target, True
    return ids, labels, mask


def slow_splice(row, images, sounds, labels, states):
    """One row, id by id: embeddings, labels, and the kind of every position."""
    embeds, targets, kinds = [], [], []
    for token, label in zip(row.tolist(), labels.tolist()):
        if token in (IMAGE, AUDIO):
            kind, features = ("image", images.pop(0)) if token == IMAGE else ("audio", sounds.pop(0))
            state = states.pop(0) if kind == "audio" else -100
            embeds += list(features)
            targets += [-100] * (len(features) - 1) + [state] * (len(features) > 0)
            kinds += [kind] * len(features)
        else:
            embeds, targets, kinds = [*embeds, TABLE[token]], [*targets, label], [*kinds, "text"]
    return embeds, targets, kinds


def slow_rows(batch):
    images, sounds, states = list(batch.images), list(batch.sounds), list(batch.states)
    return [slow_splice(row, images, sounds, labels, states) for row, labels in zip(batch.rows, batch.labels)]


def real(spliced, name):
    """One field as a list of rows without padding."""
    return [x[m] for x, m in zip(getattr(spliced, name), spliced.attention_mask)]


def same(one, other):
    """Whether two results are equal in every field, bit by bit."""
    return one.segments == other.segments and all(
        (x is None and y is None) or x.equal(y) for x, y in zip(one[:5], other[:5])
    )


# ---- examples


def test_the_features_of_an_image_take_the_place_of_its_placeholder():
    image = torch.full((3, WIDTH), 9.0)
    got = splice(torch.tensor([[5, IMAGE, 7]]), embed, [image], **TOKENS)
    assert got.inputs_embeds[0].equal(torch.stack([TABLE[5], *image, TABLE[7]]))
    assert got.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert got.segments == [[("text", 0, 1), ("image", 1, 4), ("text", 4, 5)]]
    assert got.lengths.tolist() == [5] and got.labels is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mixed_batch_as_a_diagram(side):
    rows = [torch.tensor(r) for r in ([1, IMAGE, AUDIO, 2], [3], [AUDIO, IMAGE], [IMAGE, IMAGE, 4])]
    sizes = {"image": [2, 1, 1, 3], "audio": [1, 2]}
    images, sounds = ([torch.zeros(n, WIDTH) for n in sizes[kind]] for kind in ("image", "audio"))
    got = splice(rows, embed, images, sounds, padding_side=side, shared_v_pid_stride=2, **TOKENS)
    letters = {"text": "t", "image": "i", "audio": "a"}
    lines = [["."] * got.inputs_embeds.shape[1] for _ in rows]
    for line, segments in zip(lines, got.segments):
        for kind, start, end in segments:
            line[start:end] = letters[kind] * (end - start)
    diagrams = {"right": ["tiiat", "t....", "aai..", "iiiit"], "left": ["tiiat", "....t", "..aai", "iiiit"]}
    positions = {
        "right": [[0, 1, 1, 2, 3], [0, 0, 0, 0, 0], [0, 1, 2, 0, 0], [0, 0, 1, 1, 2]],
        "left": [[0, 1, 1, 2, 3], [0, 0, 0, 0, 0], [0, 0, 0, 1, 2], [0, 0, 1, 1, 2]],
    }
    assert ["".join(line) for line in lines] == diagrams[side]
    assert got.position_ids.tolist() == positions[side]
    assert got.attention_mask.tolist() == [[c != "." for c in line] for line in diagrams[side]]
    assert got.lengths.tolist() == [5, 1, 3, 5]


def test_labels_and_state_labels_of_a_small_row_with_and_without_truncation():
    ids, labels = torch.tensor([[1, IMAGE, 2, AUDIO, 3]]), torch.tensor([[11, 12, 13, 14, 15]])
    images, sounds = [torch.zeros(2, WIDTH)], [torch.zeros(3, WIDTH)]
    got = splice(ids, embed, images, sounds, labels=labels, state_labels=[-102], **TOKENS)
    assert got.labels.tolist() == [[11, -100, -100, 13, -100, -100, -102, 15]]
    got = splice(ids, embed, images, sounds, labels=labels, state_labels=[-102], max_length=5, **TOKENS)
    assert got.labels.tolist() == [[11, -100, -100, 13, -100]]
    assert got.segments == [[("text", 0, 1), ("image", 1, 3), ("text", 3, 4), ("audio", 4, 5)]]


def test_runs_are_pieces_of_text_and_single_placeholders():
    row = torch.tensor([IMAGE, IMAGE, 4, 5, 6, AUDIO])
    assert list(runs(row, {"image": IMAGE, "audio": AUDIO})) == [
        ("image", 0, 1),
        ("image", 1, 2),
        ("text", 2, 5),
        ("audio", 5, 6),
    ]


# ---- properties of every batch


@few
@given(batches(), sides)
def test_the_result_equals_that_of_going_through_each_row_id_by_id(batch, side):
    got = splice_batch(batch, labels=batch.labels, state_labels=batch.states, padding_side=side)
    for i, (embeds, labels, kinds) in enumerate(slow_rows(batch)):
        assert int(got.lengths[i]) == len(embeds) == int(got.attention_mask[i].sum())
        assert real(got, "inputs_embeds")[i].equal(torch.stack(embeds) if embeds else torch.zeros(0, WIDTH))
        assert real(got, "labels")[i].tolist() == labels
        assert [kind for kind, start, end in got.segments[i] for _ in range(start, end)] == kinds


@few
@given(batches(), sides)
def test_padding_is_on_one_side_and_has_zeros_position_id_zero_and_no_label(batch, side):
    got = splice_batch(batch, labels=batch.labels, padding_side=side)
    padding = ~got.attention_mask
    assert not got.inputs_embeds[padding].any() and not got.position_ids[padding].any()
    assert (got.labels[padding] == -100).all()
    longest = int(got.lengths.max())
    assert got.inputs_embeds.shape == (len(batch.rows), longest, WIDTH)
    for mask, n in zip(got.attention_mask.tolist(), got.lengths.tolist()):
        padded = [False] * (longest - n)
        assert mask == (padded + [True] * n if side == "left" else [True] * n + padded)


@few
@given(batches(), sides)
def test_positions_count_the_real_tokens(batch, side):
    got = splice_batch(batch, padding_side=side)
    assert [p.tolist() for p in real(got, "position_ids")] == [list(range(n)) for n in got.lengths.tolist()]


@few
@given(batches(), sides)
def test_the_embeddings_of_text_are_not_changed_in_any_bit(batch, side):
    got = splice_batch(batch, padding_side=side)
    for row, embeds, segments in zip(batch.rows, got.inputs_embeds, got.segments):
        text = [embeds[start:end] for kind, start, end in segments if kind == "text"]
        tokens = row[(row != IMAGE) & (row != AUDIO)]
        assert torch.cat([*text, embeds[:0]]).equal(TABLE[tokens])


@few
@given(batches(), sides)
def test_segments_are_contiguous_and_add_up_to_the_length_of_the_row(batch, side):
    got = splice_batch(batch, padding_side=side)
    longest = got.attention_mask.shape[1]
    for segments, n in zip(got.segments, got.lengths.tolist()):
        assert all(start < end for _, start, end in segments)
        assert sum(end - start for _, start, end in segments) == n
        edges = [longest - n if side == "left" else 0] + [end for *_, end in segments]
        assert [start for _, start, _ in segments] == edges[:-1]
    for kind, features in (("image", batch.images), ("audio", batch.sounds)):  # one segment for each placeholder
        sizes = [end - start for segments in got.segments for k, start, end in segments if k == kind]
        assert sizes == [len(x) for x in features if len(x)]


@few
@given(batches(), sides)
def test_labels_are_kept_at_text_and_nowhere_else(batch, side):
    got = splice_batch(batch, labels=batch.labels, padding_side=side)
    for row, labels, out, segments in zip(batch.rows, batch.labels, got.labels, got.segments):
        kept = labels[(row != IMAGE) & (row != AUDIO)].tolist()
        columns = [i for kind, start, end in segments if kind == "text" for i in range(start, end)]
        assert out[columns].tolist() == kept
        assert (out != -100).nonzero()[:, 0].tolist() == columns


@few
@given(batches(), sides)
def test_a_state_label_is_written_on_the_last_position_of_each_sound_and_nowhere_else(batch, side):
    got = splice_batch(batch, labels=batch.labels, state_labels=batch.states, padding_side=side)
    plain = splice_batch(batch, labels=batch.labels, padding_side=side)
    states = iter([state for state, sound in zip(batch.states, batch.sounds) if len(sound)])
    for i, segments in enumerate(got.segments):
        for kind, _, end in segments:
            if kind == "audio":
                assert int(got.labels[i, end - 1]) == next(states)
                plain.labels[i, end - 1] = got.labels[i, end - 1]
    assert got.labels.equal(plain.labels)  # the other labels are those without states


@few
@given(batches(), sides, strides, st.integers(1, 9))
def test_truncation_keeps_the_beginning_of_each_row(batch, side, stride, most):
    options = {"labels": batch.labels, "state_labels": batch.states, "padding_side": side, "shared_v_pid_stride": stride}
    whole, truncated = splice_batch(batch, **options), splice_batch(batch, max_length=most, **options)
    assert truncated.lengths.equal(whole.lengths.clamp(max=most))
    for name in ("inputs_embeds", "position_ids", "labels"):
        assert all(short.equal(full[:most]) for short, full in zip(real(truncated, name), real(whole, name)))
    for short, full in zip(truncated.segments, whole.segments):
        kinds = [[kind for kind, start, end in segments for _ in range(start, end)] for segments in (short, full)]
        assert kinds[0] == kinds[1][:most]


@few
@given(batches(), sides, strides, st.integers(1, 9), st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_results(batch, side, stride, most, random):
    order = list(range(len(batch.rows)))
    random.shuffle(order)

    def reordered(features, token):
        counts = [int((row == token).sum()) for row in batch.rows]
        parts = [features[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
        return [x for i in order for x in parts[i]]

    options = {"padding_side": side, "shared_v_pid_stride": stride, "max_length": most}
    one = splice_batch(batch, labels=batch.labels, state_labels=batch.states, **options)
    other = splice(
        [batch.rows[i] for i in order],
        embed,
        reordered(batch.images, IMAGE),
        reordered(batch.sounds, AUDIO),
        labels=[batch.labels[i] for i in order],
        state_labels=reordered(batch.states, AUDIO),
        **TOKENS,
        **options,
    )
    assert other.segments == [one.segments[i] for i in order]
    assert all(x.equal(y[order]) for x, y in zip(other[:5], one[:5]))


@few
@given(batches(least=2), sides)
def test_the_splice_of_a_concatenation_is_the_concatenation_of_the_splices(batch, side):
    apart = splice_batch(batch, labels=batch.labels, state_labels=batch.states, padding_side=side)
    joined = SimpleNamespace(rows=[torch.cat(batch.rows)], images=batch.images, sounds=batch.sounds)
    one = splice_batch(joined, labels=[torch.cat(batch.labels)], state_labels=batch.states, padding_side=side)
    assert one.inputs_embeds[0].equal(torch.cat(real(apart, "inputs_embeds")))
    assert one.labels[0].equal(torch.cat(real(apart, "labels")))
    assert int(one.lengths[0]) == int(apart.lengths.sum())


@few
@given(batches(), strides, st.one_of(st.none(), st.integers(1, 9)))
def test_the_side_of_the_padding_only_moves_the_rows(batch, stride, most):
    options = {"labels": batch.labels, "state_labels": batch.states, "shared_v_pid_stride": stride, "max_length": most}
    left, right = splice_batch(batch, padding_side="left", **options), splice_batch(batch, padding_side="right", **options)
    for name in ("inputs_embeds", "position_ids", "labels"):
        assert all(x.equal(y) for x, y in zip(real(left, name), real(right, name)))
    shifts = (int(left.lengths.max()) - left.lengths).tolist()
    moved = [[(kind, a + n, z + n) for kind, a, z in row] for row, n in zip(right.segments, shifts)]
    assert left.segments == moved and left.lengths.equal(right.lengths)


@few
@given(batches(), sides, sides, st.integers(0, 3), strides)
def test_ids_padded_on_either_side_give_what_a_list_of_rows_gives(batch, before, after, more, stride):
    ids, labels, mask = as_padded(batch, before, more)
    options = {"state_labels": batch.states, "padding_side": after, "shared_v_pid_stride": stride}
    rows = splice_batch(batch, labels=batch.labels, **options)
    assert same(splice_batch(batch, rows=ids, labels=labels, attention_mask=mask, **options), rows)
    assert same(splice_batch(batch, rows=ids, labels=labels, attention_mask=mask.long(), **options), rows)


@few
@given(batches(), sides, st.sampled_from([2, 3, 4, 7]))
def test_position_ids_shared_by_a_stride_are_those_that_the_row_has_alone(batch, side, stride):
    together = splice_batch(batch, padding_side=side, shared_v_pid_stride=stride)
    images, sounds = iter(batch.images), iter(batch.sounds)
    for row, got in zip(batch.rows, real(together, "position_ids")):
        row_images = [next(images) for _ in range(int((row == IMAGE).sum()))]
        row_sounds = [next(sounds) for _ in range(int((row == AUDIO).sum()))]
        alone = splice([row], embed, row_images, row_sounds, shared_v_pid_stride=stride, **TOKENS)
        assert got.equal(alone.position_ids[0])


@few
@given(batches(), st.sampled_from([2, 3, 4, 7]))
def test_neighbouring_images_share_position_ids_as_one_image(batch, stride):
    """A position id begins at each text or sound position, and at every ``stride``-th position of a run of images."""
    got = splice_batch(batch, shared_v_pid_stride=stride)
    for positions, segments in zip(got.position_ids.tolist(), got.segments):
        expected, position, in_images = [], -1, 0
        for kind in [kind for kind, start, end in segments for _ in range(start, end)]:
            position += kind != "image" or in_images % stride == 0
            in_images = in_images + 1 if kind == "image" else 0
            expected.append(position)
        assert positions[: len(expected)] == expected


@few
@given(batches(), sides)
def test_a_stride_of_one_or_none_changes_nothing(batch, side):
    assert same(splice_batch(batch, padding_side=side, shared_v_pid_stride=1), splice_batch(batch, padding_side=side))


@few
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=4),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]),
)
def test_a_span_of_n_positions_takes_n_over_stride_position_ids_rounded_up(gaps, tail, stride):
    spans, end = [], 0
    for gap, size in gaps:
        spans.append((end + gap, end + gap + size))
        end += gap + size
    length = end + tail
    merged = []
    for start, stop in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    positions = shared_position_ids(spans, length, stride).tolist()
    sizes = [stop - start for start, stop in merged]
    used = length - sum(sizes) + sum(math.ceil(size / stride) for size in sizes)
    assert (positions[-1] + 1 if positions else 0) == used
    assert all(0 <= following - position <= 1 for position, following in pairwise(positions))
    assert shared_position_ids(spans[::-1], length, stride).tolist() == positions  # the order of spans does not matter


# ---- empty rows and media


@few
@given(batches(), sides, strides)
def test_positions_labels_and_lengths_are_long_and_the_mask_is_bool(batch, side, stride):
    out = splice_batch(batch, labels=batch.labels, padding_side=side, shared_v_pid_stride=stride)
    assert {out.position_ids.dtype, out.labels.dtype, out.lengths.dtype} == {torch.long}
    assert out.attention_mask.dtype == torch.bool and out.inputs_embeds.dtype == torch.float32


@pytest.mark.parametrize("spans", [[], [(0, 3)], [(1, 5), (5, 6)]])
@pytest.mark.parametrize("stride", [1, 2, 7])
def test_shared_position_ids_are_long(spans, stride):
    assert shared_position_ids(spans, 6, stride).dtype == torch.long


def test_empty_rows_are_padding():
    empty = torch.tensor([], dtype=torch.long)
    got = splice([empty, torch.tensor([4, 5])], embed, labels=[empty, torch.tensor([8, 9])], **TOKENS)
    assert got.attention_mask.tolist() == [[False, False], [True, True]] and got.segments == [[], [("text", 0, 2)]]
    assert got.labels.tolist() == [[-100, -100], [8, 9]]
    assert splice([empty], embed, **TOKENS).inputs_embeds.shape == (1, 0, WIDTH)


def test_a_row_of_placeholders_only_has_no_text_segment():
    got = splice(torch.tensor([[IMAGE, AUDIO]]), embed, [torch.ones(2, WIDTH)], [torch.ones(3, WIDTH)], **TOKENS)
    assert got.segments == [[("image", 0, 2), ("audio", 2, 5)]] and got.inputs_embeds.eq(1).all()


def test_features_without_rows_add_no_segment_and_no_state_label():
    ids, labels = torch.tensor([[1, AUDIO, 2]]), torch.tensor([[11, 12, 13]])
    got = splice(ids, embed, (), [torch.zeros(0, WIDTH)], labels=labels, state_labels=[-101], **TOKENS)
    assert got.segments == [[("text", 0, 1), ("text", 1, 2)]] and got.labels.tolist() == [[11, 13]]


def test_features_take_the_dtype_of_the_embeddings():
    image = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    got = splice(torch.tensor([[IMAGE, 3]]), lambda ids: TABLE[ids].half(), [image], **TOKENS)
    assert got.inputs_embeds[0].equal(torch.cat([image, TABLE[3:4]]).half())


def test_the_text_of_all_rows_is_embedded_in_one_call():
    calls = []

    def recorded_embed(ids):
        calls.append(ids.tolist())
        return TABLE[ids]

    rows = [torch.tensor([1, IMAGE, 2]), torch.tensor([3])]
    splice(rows, recorded_embed, [torch.ones(2, WIDTH)], **TOKENS)
    assert calls == [[1, 2, 3]]


def test_features_may_be_given_as_one_tensor():
    features = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[IMAGE, 4, IMAGE]])
    assert same(splice(ids, embed, features, **TOKENS), splice(ids, embed, list(features), **TOKENS))


def test_arguments_are_not_changed():
    batch = SimpleNamespace(rows=torch.tensor([[3, AUDIO]]), images=[], sounds=[torch.ones(2, WIDTH)])
    labels = torch.tensor([[7, 8]])
    splice_batch(batch, labels=labels, state_labels=[-101])
    assert labels.tolist() == [[7, 8]] and batch.rows.tolist() == [[3, AUDIO]] and batch.sounds[0].eq(1).all()


# ---- refused arguments


@few
@given(batches(), st.sampled_from(["image", "audio"]), st.sampled_from([-1, 1]))
def test_a_wrong_number_of_features_is_refused_with_both_numbers(batch, kind, more):
    features = {"image": list(batch.images), "audio": list(batch.sounds)}
    right = len(features[kind])
    assume(right + more >= 0)
    features[kind] = features[kind][1:] if more < 0 else [*features[kind], torch.zeros(2, WIDTH)]
    has = f"{right} {kind} placeholder{'' if right == 1 else 's'}"
    given = f"{right + more} {kind}{' was' if right + more == 1 else 's were'} given"
    with pytest.raises(ValueError, match=f"the prompt has {has}, but {given}"):
        splice(batch.rows, embed, features["image"], features["audio"], **TOKENS)


def test_wrong_arguments_are_refused_with_the_expected_and_the_given_value():
    ids, image = torch.tensor([[1, IMAGE, 2]]), torch.zeros(2, WIDTH)
    refused = [
        ({"padding_side": "middle"}, ["padding_side", "'middle'"]),
        ({"attention_mask": torch.ones(1, 4)}, ["attention_mask", "[3]", "[4]"]),
        ({"attention_mask": torch.ones(2, 3)}, ["attention_mask", "[3]", "[3, 3]"]),
        ({"labels": torch.ones(1, 2).long()}, ["labels", "[3]", "[2]"]),
        ({"labels": torch.ones(2, 3).long()}, ["labels", "[3]", "[3, 3]"]),
        ({"state_labels": [-101]}, ["state_labels must have 0 entries", "got 1"]),
        ({"shared_v_pid_stride": -2}, ["shared_v_pid_stride", "-2"]),
        ({"image_features": [torch.zeros(2, WIDTH + 1)]}, ["image", str(WIDTH), str(WIDTH + 1)]),
    ]
    for changed, parts in refused:
        with pytest.raises(ValueError) as caught:
            splice(ids, embed, **{"image_features": [image]} | changed, **TOKENS)
        assert all(part in str(caught.value) for part in parts), str(caught.value)
    with pytest.raises(ValueError, match="input_ids"):
        splice([], embed, **TOKENS)
