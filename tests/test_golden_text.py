"""Text through the decoder against what upstream's model gives for the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vita_ref import Vita

GOLDEN = Path(__file__).parent / "golden"
BOUND = 5e-5


def case(name):
    return load_file(GOLDEN / "cases" / f"{name}.safetensors")


def off(got, want):
    assert got.shape == want.shape
    return float((got - want).abs().nan_to_num(nan=torch.inf).max())


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.float32)


def test_logits_hidden_states_maps_and_loss_of_one_row(vita):
    t = case("text_single")
    out = vita(t["input_ids"], labels=t["labels"], output_hidden_states=True, output_attentions=True)
    assert off(out.logits, t["logits"]) < BOUND and off(out.loss, t["loss"]) < BOUND
    assert off(torch.stack(out.hidden_states), t["hidden_states"]) < BOUND
    assert off(torch.stack(out.attentions), t["attentions"]) < BOUND


def test_the_loss_of_a_batch_counts_every_token_once(vita):
    t = case("text_batch_loss")
    out = vita(t["input_ids"], labels=t["labels"])
    assert off(out.logits, t["logits"]) < BOUND and off(out.loss, t["loss"]) < BOUND


def test_token_by_token_with_a_cache(vita):
    t = case("text_incremental")
    ids = t["input_ids"]
    start = ids.shape[1] - len(t["step_logits"])
    out = vita(ids[:, :start])
    assert off(out.logits, t["prefill_logits"]) < BOUND and off(vita(ids).logits, t["full_logits"]) < BOUND
    for i, want in enumerate(t["step_logits"], start):
        out = vita(ids[:, i : i + 1], cache=out.cache)
        assert off(out.logits[0, 0], want) < BOUND
    for i, (keys, values) in enumerate(zip(t["key_cache"], t["value_cache"])):
        assert off(out.cache[i][0], keys) < BOUND and off(out.cache[i][1], values) < BOUND


def test_greedy_tokens_and_the_logits_that_chose_them(vita):
    t = case("text_greedy")
    got = vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=())
    assert got.equal(t["generated"])
    whole = vita(torch.cat([t["input_ids"], got[:, :-1]], 1)).logits[:, -12:]
    assert off(whole, t["step_logits"]) < BOUND


def test_greedy_ends_with_the_end_token(vita):
    t = case("text_greedy_eos")
    eos = int(t["eos_token_id"])
    for given in (eos, [eos], [eos, 7]):
        assert vita.generate(t["input_ids"], max_new_tokens=12, eos_token_id=given).equal(t["generated"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batches(vita, side):
    t = case(f"text_pad_{side}")
    real = t["attention_mask"].bool()
    given = vita(t["input_ids"], attention_mask=t["attention_mask"], position_ids=t["position_ids"]).logits
    counted = vita(t["input_ids"], attention_mask=real).logits
    columns = vita(t["input_ids"], attention_mask=real, position_ids=torch.arange(real.shape[1])[None]).logits
    assert off(given[real], t["logits_valid"]) < BOUND and off(counted[real], t["logits_valid"]) < BOUND
    assert off(columns[real], t["logits_valid_default_positions"]) < BOUND
