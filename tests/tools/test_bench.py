"""The benchmark on models of a few hundred kilobytes: its arithmetic, its rows and its table. No time is judged."""

import json
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_checkpoint
from tools.bench import process as bench_second
from tools.bench import run as bench
from vita_ref import KVCache, Vita, VitaConfig
from vita_ref.analysis import budget
from vita_ref.config import CodecConfig, DecoderConfig, SpeechConfig, VisionConfig
from vita_ref.vision import Projector, VisionTower

QWEN = replace(make_checkpoint.QWEN2_HALF_B, decoder=DecoderConfig(300, 48, 80, 3, 6, 2, 8), eos_token_ids=(299,))
EYE = VisionConfig(24, 40, 2, 3, image_size=56)
PARTS = replace(bench.PARTS, decoder=DecoderConfig(290, 64, 20, 1, 2, 2, 8), vision=EYE)
VOICE = SpeechConfig(30, 1, DecoderConfig(34, 32, 56, 2, 4, 4, 8, rope_theta=1e4, attention_bias=False))
SOUND = CodecConfig(30, (1, 2), (4, 3), (8, 5), 16, (3, 5), ((1, 2), (1, 3)))
SMALL = {"prompt": 11, "new": 4, "lengths": (7, 13), "megabytes": 2, "square": 32, "words": 5, "codes": 90}


class Here:
    """A side in this very process, so that the tests need not import torch a dozen times."""

    def __init__(self, who, asked):
        self.who, self.side, self.asked = who, bench_second.SIDES[who](), asked
        self.side.imports = 0  # this process holds far more than imports, and so small a model may fit in between

    def ask(self, task, *arguments):
        self.asked.append((self.who, task))
        arguments = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(getattr(self.side, task)(*arguments)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return bench.write_models(tmp_path_factory.mktemp("bench"), QWEN, PARTS, VOICE, SOUND)


def begun(folders, asked, pairs=2, missing=()):
    """A benchmark whose sides note in ``asked`` who was asked what."""
    return bench.Bench(*folders, lambda who: None if who in missing else Here(who, asked), pairs, SMALL)


decoders = st.builds(
    lambda d, f, layers, groups, shared, half, tied, biased: DecoderConfig(
        97, d, f, layers, groups * shared, groups, 2 * half, tie_word_embeddings=tied, attention_bias=biased
    ),
    *(st.integers(1, 9), st.integers(1, 9), *[st.integers(1, 3)] * 4, st.booleans(), st.booleans()),
)


@settings(deadline=None, max_examples=25)
@given(decoders, st.integers(1, 3), st.integers(1, 7))
def test_bytes_are_those_of_the_modules_and_of_the_cache(config, b, length):
    with torch.device("meta"):
        state = Vita(VitaConfig(config)).decoder.state_dict()
    matrices = {name: t for name, t in state.items() if t.dim() == 2 and "embed_tokens" not in name}
    head = state["embed_tokens.weight"].numel() if config.tie_word_embeddings else 0  # the table is the head
    assert bench.read_elements(config) == sum(t.numel() for t in matrices.values()) + head
    cache = KVCache(config.num_hidden_layers, b, config.num_key_value_heads, length, config.head_dim, torch.bfloat16)
    assert budget.cache_elements(config, b, length) * 2 == cache.nbytes
    assert bench.least_bytes(config, b * length) == 2 * sum(t.numel() for t in state.values()) + cache.nbytes


def test_a_token_of_the_half_billion_model_reads_a_gigabyte():
    c = bench.MODEL.decoder
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    assert bench.read_elements(c) == 24 * layer + 151936 * 896
    assert 2 * bench.read_elements(c) / 1e9 == pytest.approx(0.99, abs=0.005)


def test_the_operations_of_a_tile_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for config, width in ((EYE, 64), (bench.EYE, 3584)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            features = VisionTower(config)(torch.empty(1, 3, config.image_size, config.image_size))
            Projector(config.feature_size, width)(features)
        assert bench.tile_flops(config, width) == counter.get_total_flops()


@pytest.mark.parametrize("name", [n for n in bench.ROWS if n not in ("load", "memory", "long")])
def test_rows_have_a_ratio_for_each_turn(folders, name):
    if name in ("decode", "float32", "prefill", "batch", "packed"):
        pytest.importorskip("transformers")
    for row in getattr(begun(folders, [], pairs=3), name)():
        assert row.ours > 0 and len(row.ratios) in (0, 3) and all(r > 0 for r in row.ratios), row
        assert (row.met is None) == (row.goal is None)


def test_a_process_of_its_own_loads_and_knows_its_memory_and_says_of_what_it_died(folders, capfd):
    with bench_second.Side("ours", 1) as side:
        assert side.ask("load", str(folders[0]), "bfloat16")["load_s"] > 0
        told = side.ask("tokens", 6, 2, 3)
        assert min(told["first_s"], told["prefill"], told["decode"]) > 0
        memory = side.ask("memory")
        assert 50e6 < memory["imports"] < memory["peak"]
        with pytest.raises(RuntimeError, match="'ours' ended at load"):
            side.ask("load", "/nowhere", "bfloat16")
    assert "not a checkpoint folder" in capfd.readouterr().err


def test_loads_and_peaks_are_each_measured_in_a_new_side(folders):
    pytest.importorskip("transformers")
    asked = []
    work = begun(folders, asked)
    rows = [*work.load(), *work.memory(), *work.long()]
    loaded = [who for who, task in asked if task == "load"]
    assert loaded == ["ours", "theirs"] * (1 + 2) + ["ours", "theirs"] + ["ours"] * len(SMALL["lengths"])
    assert all(row.ours > 0 for row in rows) and [row.goal is not None for row in rows] == [1, 1, 0, 1, 0, 0, 0, 0, 1]
    assert rows[3].other == pytest.approx(bench.least_bytes(QWEN.decoder, 11 + 8) / 1e9)


def test_sides_take_turns_and_are_asked_once_for_what_two_rows_need(folders):
    pytest.importorskip("transformers")
    asked = []
    work = begun(folders, asked)
    work.decode()
    turn = [("limits", "bus"), ("ours", "tokens"), ("theirs", "tokens")]
    assert asked == [("ours", "load"), ("theirs", "load"), *turn, *turn, *turn]
    work.prefill()
    assert len(asked) == 2 + 3 * 3


def test_without_transformers_our_figures_stand_alone(folders):
    work = begun(folders, [], missing=("theirs",))
    rows = [*work.decode(), *work.prefill(), *work.batch(), *work.load(), *work.memory()]
    alone = [row for row in rows if row.other == bench.MISSING]
    assert len(alone) == 7 and all(row.ours > 0 and row.met is None and not row.ratios for row in alone)
    assert "transformers is not installed" in bench.line(bench.cells(alone[0]))


def test_ratios_are_taken_within_a_turn():
    row = bench.compared("load", "s", [1.0, 2.0, 10.0], [4.0, 16.0, 30.0], (">=", 4), less_is_better=True)
    assert row.ratios == (4, 8, 3) and row.met and statistics.median(row.ratios) == 4
    assert not row._replace(goal=("<=", 3.9)).met and not row._replace(goal=(">=", 4.1)).met
    assert [c.strip() for c in bench.line(bench.cells(row)).strip("|").split("|")] == [
        *("load", "2 s", "16 s", "4.00 [3.00..8.00]", ">= 4", "yes")
    ]  # fmt: skip


def test_the_program_prints_a_table_and_writes_json(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", SMALL)
    monkeypatch.setattr(bench, "write_models", lambda work: folders)
    monkeypatch.setattr(bench, "Side", lambda who, threads: Here(who, []))
    arguments = ["--only", "bus", "speech", "--pairs", "1", "--threads", "1", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    bench.main()
    printed = capsys.readouterr().out.splitlines()
    assert "threads 1" in printed[0] and printed[1].split()[1] == "what" and set(printed[2]) == set("| -")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [row["what"] for row in written["rows"]] == [line.split("|")[1].strip() for line in printed[3:]]
    assert len(printed) == 3 + 1 + 4 and written["machine"]["threads"] == 1
