"""The decoder: properties that hold at any size, and each fast path against a slow oracle of a few lines."""

import copy
import weakref
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import KVCache, Vita, VitaConfig
from vita_ref.config import DecoderConfig
from vita_ref.decoder import (
    MLP,
    QUERY_BLOCK,
    Decoder,
    RMSNorm,
    apply_rope,
    eager_attention,
    fused_attention,
    next_token_loss,
    rope_angles,
)
from vita_ref.masks import Mask

few = settings(max_examples=15, deadline=None)
fewer = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 999)
TINY = DecoderConfig(41, 14, 23, 3, 6, 2, 10)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def build(config, seed=0):
    """A tiny decoder in which every parameter is random, biases and norms too."""
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.uniform_(-1, 1, generator=seeded(seed + parameter.numel()))
    return decoder


@st.composite
def decoders(draw):
    groups = draw(st.integers(1, 3))
    config = DecoderConfig(
        vocab_size=draw(st.integers(41, 50)),
        hidden_size=draw(st.integers(13, 19)),
        intermediate_size=draw(st.integers(22, 29)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from([4, 8, 10])),
        rope_theta=draw(st.sampled_from([1e2, 1e4])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )
    return build(config, draw(seeds))


@st.composite
def batches(draw, sides=("none", "left", "right", "anywhere")):
    """Ids [B, S] and which of them are real [B, S]: padding on a side, or columns left out anywhere."""
    b, s, side = draw(st.integers(1, 3)), draw(st.integers(3, 9)), draw(st.sampled_from(sides))
    ids = torch.randint(41, (b, s), generator=seeded(draw(seeds)))
    columns = torch.arange(s).expand(b, s)
    lengths = torch.tensor([[draw(st.integers(1, s))] for _ in range(b)])
    if side == "none":
        return ids, torch.ones_like(ids).bool()
    if side == "right":
        return ids, columns < lengths
    if side == "left":
        return ids, columns >= s - lengths
    real = torch.randint(2, (b, s), generator=seeded(draw(seeds))).bool()
    return ids, real | (columns == lengths - 1)


def logits(decoder, ids, **options):
    return decoder.lm_head(decoder(decoder.embed_tokens(ids), **options).last_hidden_state)


def max_error(got, want):
    """The largest absolute difference; NaN counts as infinite."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().nan_to_num(nan=torch.inf).max()) if got.numel() else 0.0


# ---- properties of the whole decoder


@few
@given(decoders(), batches(), st.data())
def test_any_chunking_gives_the_same_logits(decoder, batch, data):
    (ids, real), s = batch, batch[0].shape[1]
    whole = logits(decoder, ids, attention_mask=real)
    ends = sorted(data.draw(st.sets(st.integers(1, s - 1)), "ends of the chunks"))
    cache = decoder.new_cache(len(ids), data.draw(st.sampled_from([None, s, s + 5]), "limit"))
    full_mask = data.draw(st.booleans(), "the mask covers the cached columns too")

    def check_chunk(start, end):
        mask = real[:, :end] if full_mask else real[:, start:end]
        mask = None if real.all() else mask
        got = logits(decoder, ids[:, start:end], attention_mask=mask, cache=cache)
        assert max_error(got[real[:, start:end]], whole[:, start:end][real[:, start:end]]) < 1e-4
        assert cache.length == end and cache.mask.equal(real[:, :end])
        assert cache.next_positions.equal(real[:, :end].sum(1))

    with patch("vita_ref.cache.GROWTH", 4):
        for start, end in zip([0, *ends], [*ends, s]):
            check_chunk(start, end)
        kept = data.draw(st.integers(0, s - 1), "kept columns")
        cache.truncate(kept)
        check_chunk(kept, s)


@few
@given(decoders(), batches(), seeds, st.booleans())
def test_padding_changes_nothing_whatever_it_holds(decoder, batch, seed, maps):
    ids, real = batch
    embeds = decoder.embed_tokens(ids)
    embeds[~real] = torch.randn(embeds[~real].shape, generator=seeded(seed)) * 1000
    out = decoder(embeds, attention_mask=real, output_attentions=maps)
    assert out.last_hidden_state.isfinite().all()
    for row, kept, got in zip(embeds, real, out.last_hidden_state):
        assert max_error(got[kept], decoder(row[kept][None]).last_hidden_state[0]) < 1e-4


@few
@given(decoders(), st.integers(2, 9), st.data())
def test_a_token_changes_its_own_logits_and_none_before_it(decoder, s, data):
    ids = torch.randint(41, (2, s), generator=seeded(data.draw(seeds)))
    t = data.draw(st.integers(1, s - 1))
    before = logits(decoder, ids)
    ids[:, t] = (ids[:, t] + 1) % 41
    after = logits(decoder, ids)
    assert max_error(after[:, :t], before[:, :t]) < 1e-5
    assert all(max_error(after[i, t], before[i, t]) > 1e-3 for i in range(2))


@few
@given(decoders(), st.integers(0, 500))
def test_shifting_all_positions_changes_nothing_and_changing_their_distances_does(decoder, shift):
    ids = torch.randint(41, (2, 6), generator=seeded(shift))
    want = logits(decoder, ids)
    positions = torch.arange(6).expand(2, 6)
    assert max_error(logits(decoder, ids, position_ids=positions + shift), want) < 3e-3
    assert max_error(logits(decoder, ids, position_ids=positions * 2), want) > 1e-2


@few
@given(decoders(), batches(("none", "left", "right")), st.integers(1, 4), st.integers(1, 5))
def test_positions_continue_after_the_last_one_of_each_row_with_padding_and_with_shared_positions(decoder, batch, stride, more):
    ids, real = batch
    shared = (real.cumsum(1) - 1).div(stride, rounding_mode="floor") * real
    last = shared.amax(1, keepdim=True)  # position ids never decrease within a row
    new = torch.randint(41, (len(ids), more), generator=seeded(more))
    whole = logits(
        decoder,
        torch.cat([ids, new], 1),
        attention_mask=torch.cat([real, torch.ones_like(new).bool()], 1),
        position_ids=torch.cat([shared, last + 1 + torch.arange(more)], 1),
    )
    cache = decoder.new_cache(len(ids), ids.shape[1] + more)
    logits(decoder, ids, attention_mask=real, position_ids=shared, cache=cache)
    assert cache.next_positions.equal(last[:, 0] + 1)
    assert max_error(logits(decoder, new, cache=cache), whole[:, -more:]) < 1e-4


@few
@given(decoders(), st.lists(st.integers(1, 5), min_size=1, max_size=4), seeds)
def test_rows_packed_into_one_give_the_logits_that_each_gives_alone(decoder, lengths, seed):
    rows = [torch.randint(41, (1, n), generator=seeded(seed + i)) for i, n in enumerate(lengths)]
    owner = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)])
    packed = (owner[:, None] == owner).tril()[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    for maps in (False, True):
        embeds = decoder.embed_tokens(torch.cat(rows, 1))
        out = decoder(embeds, attention_mask=packed, position_ids=positions, output_attentions=maps)
        want = torch.cat([logits(decoder, row) for row in rows], 1)
        assert max_error(decoder.lm_head(out.last_hidden_state), want) < 1e-4


@few
@given(decoders(), batches(("none", "left", "right")), st.data())
def test_a_failed_pass_leaves_the_cache_as_it_was(decoder, batch, data):
    ids, real = batch
    n = data.draw(st.integers(1, ids.shape[1] - 1))
    cache = decoder.new_cache(len(ids), data.draw(st.sampled_from([None, ids.shape[1]])))

    def state():
        filled = [x.clone() for layer in range(len(decoder.layers)) for x in cache[layer]]
        return cache.length, cache.mask.tolist(), cache.next_positions.tolist(), filled

    def same(one, other):
        return one[:3] == other[:3] and all(x.equal(y) for x, y in zip(one[3], other[3]))

    def fail(*_):
        raise ArithmeticError

    with patch("vita_ref.cache.GROWTH", 3):
        logits(decoder, ids[:, :n], attention_mask=real[:, :n], cache=cache)
        before = state()
        broken = data.draw(st.sampled_from([decoder.norm, *(m for x in decoder.layers for m in (x.self_attn, x.mlp))]))
        hook = broken.register_forward_pre_hook(fail)
        with pytest.raises(ArithmeticError):
            logits(decoder, ids[:, n:], attention_mask=real[:, n:], cache=cache)
        hook.remove()
        assert same(state(), before)
        if cache.limit is not None:
            with pytest.raises(ValueError, match="full"):
                logits(decoder, torch.cat([ids, ids], 1), cache=cache)
            assert same(state(), before)
        got = logits(decoder, ids[:, n:], attention_mask=real[:, n:], cache=cache)
        want = logits(decoder, ids, attention_mask=real)
        assert max_error(got[real[:, n:]], want[:, n:][real[:, n:]]) < 1e-4


def with_decoder(decoder):
    vita = Vita(VitaConfig(decoder.config)).eval()
    vita.decoder = decoder
    return vita


@fewer
@given(decoders(), batches(("none", "left", "right")))
def test_greedy_generation_with_a_cache_equals_greedy_generation_without_one(decoder, batch):
    ids, real = batch
    got = with_decoder(decoder).generate(ids, attention_mask=real, max_new_tokens=5, eos_token_id=())
    for row, kept, answer in zip(ids, real, got.tolist()):
        row = row[kept].tolist()
        for token in answer:
            assert token == int(logits(decoder, torch.tensor([row]))[0, -1].argmax())
            row.append(token)


@fewer
@given(decoders(), batches(("none", "left", "right")))
def test_generated_tokens_have_the_largest_logits_in_one_pass_over_prompt_and_answer(decoder, batch):
    ids, real = batch
    vita = with_decoder(decoder)
    answers = vita.generate(ids, attention_mask=real, max_new_tokens=7, eos_token_id=())
    again = vita(torch.cat([ids, answers], 1), attention_mask=torch.cat([real, torch.ones_like(answers).bool()], 1))
    for row, kept, answer in zip(again.logits, real, answers):
        last = int(kept.nonzero()[-1])
        scores = torch.cat([row[last][None], row[len(kept) : -1]])  # the logits that each token was chosen from
        assert (scores.amax(1) - scores.gather(1, answer[:, None])[:, 0]).max() < 1e-4


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_near_float32(dtype, bound):
    for seed in range(5):
        decoder = build(TINY, seed)
        half = copy.deepcopy(decoder).to(dtype)
        decoder = copy.deepcopy(half).float()  # the same rounded weights
        ids = torch.randint(41, (2, 9), generator=seeded(seed))
        real = torch.arange(9).expand(2, 9) >= torch.tensor([[0], [4]])
        want, cache = logits(decoder, ids, attention_mask=real), half.new_cache(2)
        first = logits(half, ids[:, :5], attention_mask=real[:, :5], cache=cache)
        out = half(half.embed_tokens(ids[:, 5:]), attention_mask=real[:, 5:], cache=cache, output_attentions=True)
        got = torch.cat([first, half.lm_head(out.last_hidden_state)], 1)
        assert got.dtype == out.attentions[0].dtype == cache.keys.dtype == dtype
        assert ((got.float() - want)[real].norm() / want[real].norm()) < bound


# ---- outputs


@few
@given(decoders(), batches(), st.integers(0, 3))
def test_hidden_states_and_attention_maps_are_returned_on_request_and_change_nothing(decoder, batch, past):
    (ids, real), layers = batch, len(decoder.layers)
    cache = decoder.new_cache(len(ids))
    past = min(past, ids.shape[1] - 1)
    if past:
        decoder(decoder.embed_tokens(ids[:, :past]), attention_mask=real[:, :past], cache=cache)
    embeds, mask = decoder.embed_tokens(ids[:, past:]), real[:, past:]
    out = decoder(embeds, attention_mask=mask, cache=cache, output_hidden_states=True, output_attentions=True)
    cache.truncate(past)
    plain = decoder(embeds, attention_mask=mask, cache=cache)
    assert plain.hidden_states is None and plain.attentions is None
    assert max_error(out.last_hidden_state, plain.last_hidden_state) < 1e-4
    assert len(out.hidden_states) == layers + 1 and out.hidden_states[0].equal(embeds)
    assert out.hidden_states[-1].equal(out.last_hidden_state)
    assert len(out.attentions) == layers
    for weights in out.attentions:
        assert weights.shape == (len(ids), decoder.config.num_attention_heads, ids.shape[1] - past, ids.shape[1])
        assert max_error(weights.sum(-1), torch.ones(weights.shape[:3])) < 1e-5
        on_padding = (weights > 0) & ~real[:, None, None]
        assert not on_padding[mask[:, None, :, None].expand_as(on_padding)].any()  # no real token attends to padding


def test_the_output_of_a_layer_is_freed_unless_hidden_states_are_requested():
    decoder, outputs, alive = build(TINY), [], []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, given, out: outputs.append(weakref.ref(out[0])))
    decoder.norm.register_forward_pre_hook(lambda module, given: alive.extend(x() is not None for x in outputs))
    decoder(decoder.embed_tokens(torch.zeros(1, 4, dtype=torch.long)))
    assert alive == [False, False, True]


def test_a_tied_head_is_the_embedding_table():
    tied = build(DecoderConfig(41, 14, 23, 1, 6, 2, 10, tie_word_embeddings=True))
    hidden = torch.randn(2, 3, 14, generator=seeded(0))
    assert max_error(tied.lm_head(hidden), hidden @ tied.embed_tokens.weight.T) < 1e-5
    assert not any("lm_head" in name for name in tied.state_dict())
    untied = build(TINY)
    assert max_error(untied.lm_head(hidden), hidden @ untied.lm_head.weight.T) < 1e-5


@few
@given(st.integers(1, 3), st.integers(2, 7), seeds)
def test_the_loss_is_the_mean_over_next_tokens_whose_labels_are_not_negative(b, s, seed):
    scores = torch.randn(b, s, 11, generator=seeded(seed)) * 3
    labels = torch.randint(11, (b, s), generator=seeded(seed))
    labels[torch.rand(b, s, generator=seeded(seed + 1)) < 0.3] = -100
    labels[torch.rand(b, s, generator=seeded(seed + 2)) < 0.1] = -101
    labels[0, 1] = 3
    costs = [
        -float(scores[i, t].double().log_softmax(0)[labels[i, t + 1]])
        for i in range(b)
        for t in range(s - 1)
        if labels[i, t + 1] >= 0
    ]
    loss = next_token_loss(scores, labels)
    assert abs(float(loss) - sum(costs) / len(costs)) < 1e-5
    assert abs(float(next_token_loss(scores, labels, torch.ones(b, s))) - float(loss)) < 1e-6
    assert next_token_loss(scores.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]])
def test_the_loss_counts_predictions_of_real_tokens_at_real_tokens_only(mask):
    scores, labels = torch.randn(1, 5, 11, generator=seeded(3)), torch.tensor([[4, 1, 7, 3, 9]])
    pairs = [t for t in range(4) if mask[t] and mask[t + 1]]
    costs = [-scores[0, t].log_softmax(0)[labels[0, t + 1]] for t in pairs]
    assert max_error(next_token_loss(scores, labels, torch.tensor([mask])), sum(costs) / len(costs)) < 1e-5


# ---- the parts


@few
@given(st.integers(1, 9), st.sampled_from([1e-6, 1e-2]), st.sampled_from([1e-3, 1.0, 300.0]), seeds)
def test_rms_norm_is_x_over_its_root_mean_square(size, eps, scale, seed):
    norm = RMSNorm(size, eps).requires_grad_(False)
    norm.weight.uniform_(-2, 2, generator=seeded(seed))
    x = torch.randn(2, 3, size, generator=seeded(seed)) * scale
    want = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
    assert max_error(norm(x), want) < 1e-5
    half = norm.half()(x.half())  # squares beyond 65504 do not overflow: float32 inside
    assert half.dtype == torch.float16 and max_error(half, want) < 2e-2


@few
@given(st.integers(1, 7), seeds)
def test_qwen3_normalises_each_head_of_q_and_k_before_the_rotation(s, seed):
    attention = build(replace(TINY, qk_norm=True, attention_bias=False), seed).layers[0].self_attn
    x, seen = torch.randn(2, s, TINY.hidden_size, generator=seeded(seed)), []
    attention.core.register_forward_pre_hook(lambda core, args: seen.extend(args[:2]))
    angles = rope_angles(torch.arange(s)[None], TINY.head_dim, TINY.rope_theta)
    attention(x, angles, Mask())
    for got, linear, norm in zip(seen, (attention.q_proj, attention.k_proj), (attention.q_norm, attention.k_norm)):
        heads = linear(x).unflatten(2, (-1, TINY.head_dim))  # [B, S, heads, K]
        heads = heads / (heads.square().mean(3, keepdim=True) + TINY.rms_norm_eps).sqrt() * norm.weight
        assert max_error(got, apply_rope(heads.transpose(1, 2), angles)) < 1e-5


@few
@given(st.integers(2, 9), st.integers(10, 14), seeds)
def test_the_mlp_is_swiglu(width, mlp, seed):
    block = MLP(DecoderConfig(5, width, mlp, 1, 1, 1, 2)).requires_grad_(False)
    x = torch.randn(2, 3, width, generator=seeded(seed))
    gate, up, down = (m.weight.double() for m in (block.gate_proj, block.up_proj, block.down_proj))
    g = x.double() @ gate.T
    assert max_error(block(x), (g / (1 + (-g).exp()) * (x.double() @ up.T)) @ down.T) < 1e-5


@few
@given(st.sampled_from([2, 6, 10]), st.sampled_from([1e2, 1e4, 1e6]), st.integers(0, 4000), seeds)
def test_rope_rotates_each_pair_like_a_complex_number(size, theta, start, seed):
    x = torch.randn(2, 3, 5, size, generator=seeded(seed))
    positions = start + torch.randint(50, (2, 5), generator=seeded(seed))
    pairs = torch.complex(*x.double().chunk(2, -1))  # the first half is real, the second imaginary
    angles = positions[:, None, :, None].double() * theta ** (-torch.arange(0, size, 2).double() / size)
    rotated = pairs * torch.polar(torch.ones_like(angles), angles)
    got = apply_rope(x, rope_angles(positions, size, theta))
    assert max_error(got, torch.cat([rotated.real, rotated.imag], -1)) < 2e-3  # 4000 radians in float32
    assert max_error(got.norm(dim=-1), x.norm(dim=-1)) < 1e-5


@few
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 700), seeds)
def test_rope_scores_depend_on_the_difference_of_positions_alone(first, second, shift, seed):
    q, k = torch.randn(2, 1, 1, 1, 8, generator=seeded(seed))

    def score(q_position, k_position):
        q_angles, k_angles = (rope_angles(torch.tensor([[x]]), 8, 1e4) for x in (q_position, k_position))
        return (apply_rope(q, q_angles) * apply_rope(k, k_angles)).sum()

    assert max_error(score(first + shift, second + shift), score(first, second)) < 2e-3


def slow_attention(q, k, v, allowed):
    """Weights and result with keys and values repeated for every head, in float64."""
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q.double() @ k.mT / q.shape[3] ** 0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return weights, weights @ v


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 4), st.integers(1, 5), st.booleans(), seeds)
def test_fused_and_eager_attention_equal_attention_with_repeated_keys(groups, each, past, new, some_padded, seed):
    q = torch.randn(2, groups * each, new, 6, generator=seeded(seed))
    k, v = torch.randn(2, 2, groups, past + new, 6, generator=seeded(seed + 1))
    real = torch.rand(2, past + new, generator=seeded(seed)) < 0.6 if some_padded else torch.ones(2, past + new).bool()
    mask = Mask(past, real if some_padded else None)
    allowed = torch.zeros(2, 1, new, past + new, dtype=torch.bool)
    for query in range(new):  # it sees the keys up to its own column that are not padding, and always itself
        for key in range(past + query + 1):
            allowed[:, 0, query, key] = real[:, key] | (key == past + query)
    weights, want = slow_attention(q, k, v, allowed)
    assert max_error(fused_attention(q, k, v, mask), want) < 1e-5
    out, eager_weights = eager_attention(q, k, v, mask)
    assert max_error(out, want) < 1e-5 and max_error(eager_weights, weights) < 1e-5
    with patch("vita_ref.decoder.QUERY_BLOCK", 2):  # a mask for two queries at a time
        assert max_error(fused_attention(q, k, v, mask), want) < 1e-5
        assert max_error(fused_attention(q, k, v, Mask(allowed=allowed)), want) < 1e-5


def test_the_mask_of_a_step_is_made_once_for_all_layers():
    decoder, x = build(TINY), torch.randn(2, 3, TINY.hidden_size)
    cache = decoder.new_cache(2)
    padded = torch.tensor([[0, 1, 1], [1, 1, 1]])
    decoder(x, attention_mask=padded, cache=cache)
    with patch.object(Mask, "rows", side_effect=Mask.rows, autospec=True) as made:
        decoder(x[:, :1], cache=cache)
    assert [call.args[0].allowed is None for call in made.call_args_list].count(True) == 1


def test_a_long_padded_prompt_never_makes_a_mask_of_all_its_queries():
    s = 2 * QUERY_BLOCK + 3
    q, k, real = torch.randn(1, 2, s, 4), torch.randn(1, 1, s, 4), torch.arange(s)[None] >= 5
    made, rows = [], Mask.rows

    def recorded_rows(mask, *where):
        made.append(rows(mask, *where))
        return made[-1]

    with patch.object(Mask, "rows", recorded_rows):
        fused_attention(q, k, k, Mask(0, real))
    assert [mask.shape[2:] for mask in made] == [(QUERY_BLOCK, QUERY_BLOCK), (QUERY_BLOCK, 2 * QUERY_BLOCK), (3, s)]


def test_keys_and_values_are_not_copied_for_every_query_head(largest):
    q, k = torch.randn(1, 12, 3, 64), torch.randn(1, 2, 400, 64)
    with largest:
        fused_attention(q, k, k, Mask(397))
        fused_attention(q[:, :, :1], k, k, Mask(399))
        eager_attention(q, k, k, Mask(397))[1]
    assert 0 < largest.count <= k.nbytes


def test_float16_scores_that_fit_after_scaling_do_not_overflow_before_it():
    q, k = torch.full((1, 6, 3, 128), 40.0).half(), torch.full((1, 2, 3, 128), 40.0).half()
    want = torch.ones(3, 3).tril() / torch.arange(1, 4)[:, None]
    assert max_error(eager_attention(q, k, k, Mask(0))[1][0, 5], want) < 1e-3


# ---- full sizes without memory


@pytest.mark.parametrize("name", ["documented", "vita-1.5", "qwen2-7b"])
def test_full_size_models_have_the_documented_shapes_on_the_meta_device(name):
    with torch.device("meta"):
        vita = Vita(replace(VitaConfig.preset(name), vision=None, audio=None)).eval()
        ids = torch.zeros(4, 1091, dtype=torch.long)
        mask = torch.ones(4, 1091, dtype=torch.bool)
    c = vita.config.decoder
    with torch.no_grad():
        out = vita(ids, attention_mask=mask, output_hidden_states=True)
        assert out.logits.shape == (4, 1091, c.vocab_size)
        assert [x.shape for x in out.hidden_states] == [(4, 1091, c.hidden_size)] * (c.num_hidden_layers + 1)
        assert out.cache[0][0].shape == (4, c.num_key_value_heads, 1091, 128)
        more = vita(ids[:, :1], cache=out.cache, output_attentions=True)
        assert more.attentions[0].shape == (4, c.num_attention_heads, 1, 1092)
    assert out.logits.is_meta and more.logits.is_meta


# ---- what is refused


def assert_refused(decoder, match, ids=None, **options):
    ids = torch.zeros(2, 5, dtype=torch.long) if ids is None else ids
    with pytest.raises(ValueError, match=match):
        decoder(decoder.embed_tokens(ids), **options)


def test_masks_and_positions_of_another_shape_are_refused_with_both_shapes():
    decoder = build(TINY)
    assert_refused(decoder, r"\[2, 5\].*\[2, 4\]", attention_mask=torch.ones(2, 4))
    assert_refused(decoder, r"\[2, 5\].*\[3, 5\]", attention_mask=torch.ones(3, 5))
    assert_refused(decoder, r"\[2, 5\].*\[2, 4\]", position_ids=torch.zeros(2, 4, dtype=torch.long))
    packed = torch.ones(2, 5, 5).tril()
    assert_refused(decoder, "position_ids", attention_mask=packed)
    positions = torch.arange(5)[None]
    assert_refused(decoder, "cache", attention_mask=packed, position_ids=positions, cache=decoder.new_cache(2))
    assert_refused(decoder, r"\[2, 5, 5\].*\[2, 5, 4\]", attention_mask=packed[:, :, :4], position_ids=positions)


def test_a_mask_that_contradicts_the_cache_is_refused():
    decoder, ids, real = build(TINY), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)
    real[1, 0] = 0
    cache = decoder.new_cache(2)
    logits(decoder, ids, attention_mask=real, cache=cache)
    assert_refused(decoder, "differs", ids[:, :1], attention_mask=torch.ones(2, 4), cache=cache)
    assert cache.length == 3


def test_a_cache_of_another_batch_or_model_is_refused():
    decoder = build(TINY)
    assert_refused(decoder, "cache is for layers x rows of 3 x 3, expected 3 x 2", cache=decoder.new_cache(3))
    assert_refused(decoder, "cache is for layers x rows of 2 x 2, expected 3 x 2", cache=KVCache(2, 2, 2, 9, 10))
    assert_refused(decoder, "cache", cache=KVCache(3, 2, 2, 9, 8))
