"""A second opinion: small Qwen2 folders that ``transformers`` has written give its logits, tokens and losses here."""

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vita_ref import Vita
from vita_ref.decoder import rope_angles
from vita_ref.files.rope import read_rope
from vita_ref.files.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")

THETA = 500.0


def write_qwen2(folder, tied, shard, **sizes):
    """A Qwen2 whose weights, biases and norms are random, written by `save_pretrained`."""
    config = transformers.Qwen2Config(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=52,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_theta=THETA,
        **sizes,
    )
    theirs = transformers.Qwen2ForCausalLM(config).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.uniform_(-0.6, 0.6, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.save_pretrained(folder, max_shard_size=shard)
    return theirs


def spell(folder, spelling):
    """Moves rope_theta and dtype to where old or new configs have them."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    theta = raw.pop("rope_theta", None) or raw.pop("rope_parameters")["rope_theta"]
    dtype = raw.pop("torch_dtype", None) or raw.pop("dtype")
    assert theta == THETA and dtype == "float32"
    old = {"rope_theta": theta, "rope_scaling": None, "torch_dtype": dtype}
    new = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "dtype": dtype}
    path.write_text(json.dumps(raw | (old if spelling == "old" else new)))


def test_rotations_are_theirs_bit_by_bit():
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    positions = torch.tensor([[0, 1, 2, 1091, 4600, 32767]])  # a frequency rounded otherwise is 2e-3 off at the end
    for size, theta in ((128, 1e6), (64, 1e6), (64, 1e4)):
        config = transformers.Qwen2Config(hidden_size=size, num_attention_heads=1, head_dim=size, rope_theta=theta)
        theirs = Qwen2RotaryEmbedding(config)(torch.zeros(1, 1), positions)  # each [1, S, K], its halves alike
        for ours, other in zip(rope_angles(positions, size, theta), theirs):
            assert ours[:, 0].equal(other[..., : size // 2])


CASES = [*itertools.product([True, False], ["20KB", "1GB"], ["old", "new"])]


@pytest.mark.parametrize(("tied", "shard", "spelling"), CASES)
def test_a_folder_written_by_transformers_gives_their_logits_and_their_tokens(tmp_path, tied, shard, spelling):
    theirs = write_qwen2(tmp_path, tied, shard)
    spell(tmp_path, spelling)
    shards = len([*tmp_path.glob("*.safetensors")])
    assert shards > 2 if shard == "20KB" else shards == 1
    vita = Vita.from_pretrained(tmp_path)
    assert vita.config.decoder.tie_word_embeddings == tied and vita.decoder.norm.weight.dtype == torch.float32
    ids = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (vita(ids).logits - theirs(ids).logits).abs().max() < 1e-4
    want = theirs.generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=0)
    got = vita.generate(ids, max_new_tokens=32, eos_token_id=(), include_prompt=True)
    assert got.equal(want) and len(set(want[0, 11:].tolist())) > 3


def test_a_head_size_other_than_width_by_heads_is_read_from_the_config(tmp_path):
    theirs = write_qwen2(tmp_path, True, "1GB", head_dim=10)
    vita = Vita.from_pretrained(tmp_path)
    ids = torch.arange(9)[None]
    assert vita.config.decoder.head_dim == 10
    with torch.no_grad():
        assert (vita(ids).logits - theirs(ids).logits).abs().max() < 1e-4


def test_our_loss_and_padding_are_theirs(tmp_path):
    theirs = write_qwen2(tmp_path, False, "1GB")
    vita = Vita.from_pretrained(tmp_path)
    ids = torch.randint(97, (3, 8), generator=torch.Generator().manual_seed(5))
    real = torch.arange(8) >= torch.tensor([[0], [3], [5]])
    labels = ids.masked_fill(~(real & real.roll(1, 1)), -100)  # padding predicts nothing
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = theirs(ids, attention_mask=real.long(), position_ids=positions, labels=labels, output_hidden_states=True)
        got = vita(ids, attention_mask=real, labels=labels, output_hidden_states=True)
    assert (got.logits - want.logits)[real].abs().max() < 1e-4 and (got.loss - want.loss).abs() < 1e-4
    assert len(got.hidden_states) == len(want.hidden_states)
    assert all((a - b)[real].abs().max() < 1e-4 for a, b in zip(got.hidden_states, want.hidden_states))


def test_a_config_without_optional_keys_has_their_defaults(tmp_path):
    """A folder whose config leaves out what `Qwen2Config` has a default for gives the model of those defaults."""
    theirs = write_qwen2(tmp_path, False, "1GB")
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    for key in ("rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling", "hidden_act", "tie_word_embeddings"):
        raw.pop(key, None)
    path.write_text(json.dumps(raw))
    ours, defaults = Vita.from_pretrained(tmp_path), transformers.Qwen2Config()
    assert ours.config.decoder.rms_norm_eps == defaults.rms_norm_eps
    assert ours.config.decoder.tie_word_embeddings == defaults.tie_word_embeddings
    again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert (ours(ids).logits - again(ids).logits).abs().max() < 1e-4
        assert (ours(ids).logits - theirs(ids).logits).abs().max() > 1e-3  # its rope_theta was another


# ---- rotary positions


def optional(**kinds):
    """Dicts in which each key may be absent."""
    return st.fixed_dictionaries({}, optional=kinds)


YARN = optional(
    beta_fast=st.sampled_from([8.0, 32, None]),
    beta_slow=st.sampled_from([1.0, 2]),
    attention_factor=st.sampled_from([0.9, 1.0, None]),
    original_max_position_embeddings=st.sampled_from([50, 4096]),
    truncate=st.booleans(),
    mscale=st.sampled_from([1.0, 0.7]),
    mscale_all_dim=st.sampled_from([1.0, 0.8]),
    rope_theta=st.sampled_from([100.0, 1e6]),
)
YARN = st.builds(
    lambda options, key, factor: options | {key: "yarn", "factor": factor},
    YARN, st.sampled_from(["type", "rope_type"]), st.sampled_from([1.0, 2, 4.0, 7.5]),
)  # fmt: skip
ROPE = st.sampled_from([{}, {"type": "default"}, {"rope_theta": 300.0}, {"rope_type": "default", "rope_theta": 70.0}])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    optional(
        rope_theta=st.sampled_from([500.0, 1e6]),
        rope_scaling=st.none() | ROPE | YARN,
        rope_parameters=st.none() | ROPE | YARN,
        max_position_embeddings=st.sampled_from([64, 32768]),
        original_max_position_embeddings=st.just(77),
    )
)
def test_every_spelling_of_rotary_positions_gives_their_rotations_bit_by_bit(raw):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    size, positions = 16, torch.tensor([[0, 1, 2, 91, 4600, 131071]])
    sizes = {"hidden_size": size, "num_attention_heads": 1, "head_dim": size}
    config = transformers.Qwen2Config.from_dict(copy.deepcopy(raw) | sizes)
    theirs = Qwen2RotaryEmbedding(config)(torch.zeros(1, 1), positions)
    for ours, other in zip(rope_angles(positions, size, *read_rope(raw, "config.json")), theirs):
        assert ours[:, 0].equal(other[..., : size // 2])


def test_a_folder_with_yarn_gives_their_logits_beyond_the_original_length(tmp_path):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    write_qwen2(tmp_path, False, "1GB")
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("rope_parameters", None)
    path.write_text(json.dumps(raw | {"rope_theta": THETA, "rope_scaling": yarn, "max_position_embeddings": 32}))
    ours, theirs = Vita.from_pretrained(tmp_path), transformers.Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
    assert ours.config.decoder.max_position_embeddings == 128
    ids = torch.randint(97, (1, 120), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-4


@pytest.mark.parametrize("change", [0, 1])
def test_a_tied_folder_with_a_stored_head_gives_their_logits(tmp_path, change):
    write_qwen2(tmp_path, True, "1GB")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"] + change * torch.randn(97, 24, generator=torch.Generator().manual_seed(1))
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    ours, theirs = Vita.from_pretrained(tmp_path), transformers.Qwen2ForCausalLM.from_pretrained(tmp_path).eval()
    assert ours.config.decoder.tie_word_embeddings == (change == 0)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-4


# ---- tokenizers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = st.text(st.sampled_from("aceé\u0301\u0338\u212b猫ﬁ² 12\n'"), max_size=8)
TEXTS = st.lists(TEXTS | st.sampled_from(SPECIAL), max_size=5).map("".join)


def small_bpe():
    """A byte-level BPE with the steps of Qwen2 and three special tokens."""
    library = pytest.importorskip("tokenizers")
    tok = library.Tokenizer(library.models.BPE())
    tok.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(["a café, a 猫 and 12 cats", "cafe\u0301 12"] * 5, trainer)
    tok.add_special_tokens(SPECIAL)
    return json.loads(tok.to_str())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.sampled_from([None, {"type": "NFC"}, {"type": "NFKC"}]),
    st.sampled_from(["Qwen2Tokenizer", "Qwen2TokenizerFast", None]),
    st.booleans(), st.booleans(), st.booleans(), st.lists(TEXTS, min_size=5, max_size=5),
)  # fmt: skip
def test_a_tokenizer_json_gives_their_ids(tmp_path_factory, normalizer, name, normalized, special, listed, texts):
    folder, raw = tmp_path_factory.mktemp("tokenizer"), small_bpe() | {"normalizer": normalizer}
    for token in raw["added_tokens"]:
        token |= {"normalized": normalized, "special": special}
    values = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | ({"tokenizer_class": name} if name else {})
    if listed:
        values["added_tokens_decoder"] = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in raw["added_tokens"]}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts += ["cafe\u0301", "<|im_end|>\u0338x"] if name else []
    for text in texts:
        if name or not normalized:  # of other classes they change flags of special tokens, we do not
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
