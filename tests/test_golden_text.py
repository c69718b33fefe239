"""Text through the decoder: equal to what upstream's model gives for the same weights."""

import pytest
import torch
from conftest import GOLDEN, case

from vita_ref import Vita

CLOSE = {"atol": 5e-5, "rtol": 0}


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.float32)


def assert_close(got, want):
    torch.testing.assert_close(got, want, **CLOSE)


def test_logits_hidden_states_attention_maps_and_loss_of_one_row_are_upstreams(vita):
    t = case("text_single")
    out = vita(t["input_ids"], labels=t["labels"], output_hidden_states=True, output_attentions=True)
    assert_close(out.logits, t["logits"])
    assert_close(out.loss, t["loss"])
    assert_close(torch.stack(out.hidden_states), t["hidden_states"])
    assert_close(torch.stack(out.attentions), t["attentions"])


def test_the_loss_of_a_batch_is_the_mean_over_all_of_its_labels(vita):
    t = case("text_batch_loss")
    out = vita(t["input_ids"], labels=t["labels"])
    assert_close(out.logits, t["logits"])
    assert_close(out.loss, t["loss"])


def test_one_token_at_a_time_with_a_cache_gives_upstreams_logits_keys_and_values(vita):
    t = case("text_incremental")
    ids = t["input_ids"]  # [1, 19]
    assert_close(vita(ids).logits, t["full_logits"])
    prompt, steps = ids[:, : -len(t["step_logits"])], ids[0, -len(t["step_logits"]) :]
    out = vita(prompt)
    assert_close(out.logits, t["prefill_logits"])
    for token, want in zip(steps, t["step_logits"], strict=True):
        out = vita(token.view(1, 1), cache=out.cache)
        assert_close(out.logits[0, 0], want)
    keys, values = zip(*(out.cache[layer] for layer in range(vita.config.decoder.num_hidden_layers)))
    assert_close(torch.stack(keys), t["key_cache"])
    assert_close(torch.stack(values), t["value_cache"])


def test_greedy_tokens_and_the_logits_that_they_are_taken_from_are_upstreams(vita):
    t = case("text_greedy")
    new = vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=())
    assert new.equal(t["generated"])
    read = torch.cat([t["input_ids"], new[:, :-1]], 1)
    assert_close(vita(read).logits[:, -12:], t["step_logits"])


def test_generation_stops_after_the_end_token_which_is_part_of_the_answer(vita):
    t = case("text_greedy_eos")
    eos = int(t["eos_token_id"])
    for eos_token_id in (eos, [eos], [eos, 7]):
        new = vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=eos_token_id)
        assert new.equal(t["generated"])
        assert new[0, -1] == eos and new.shape[1] < 12


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_the_logits_of_real_tokens(vita, side):
    t = case(f"text_pad_{side}")
    ids, real = t["input_ids"], t["attention_mask"].bool()
    given = vita(ids, attention_mask=t["attention_mask"], position_ids=t["position_ids"]).logits
    counted = vita(ids, attention_mask=real).logits  # without position_ids they are counted from the mask
    assert_close(given[real], t["logits_valid"])
    assert_close(counted[real], t["logits_valid"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_column_numbers_as_position_ids_give_what_upstream_gives_for_its_default(vita, side):
    t = case(f"text_pad_{side}")
    real = t["attention_mask"].bool()
    columns = torch.arange(real.shape[1])[None]
    logits = vita(t["input_ids"], attention_mask=real, position_ids=columns).logits
    assert_close(logits[real], t["logits_valid_default_positions"])
