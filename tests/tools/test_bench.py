"""The benchmark on models of a few hundred kilobytes: its arithmetic, its rows and its table. No test depends on time."""

import json
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import make_checkpoint
from tools.bench import process, products
from tools.bench import run as bench
from vita_ref import KVCache, Vita, VitaConfig
from vita_ref.analysis import budget
from vita_ref.config import (
    AudioConfig,
    CodecConfig,
    DecoderConfig,
    SpeechConfig,
    VisionConfig,
)
from vita_ref.vision import Projector, VisionTower

QWEN = replace(make_checkpoint.QWEN2_HALF_B, decoder=DecoderConfig(300, 48, 80, 3, 6, 2, 8), eos_token_ids=(299,))
VISION = VisionConfig(24, 40, 2, 3, image_size=56)
AUDIO = AudioConfig(24, 40, 2, 3, subsampling_size=12)
PARTS = replace(bench.PARTS, decoder=DecoderConfig(290, 64, 20, 1, 2, 2, 8), vision=VISION, audio=AUDIO)
SPEECH = SpeechConfig(30, 1, DecoderConfig(34, 32, 56, 2, 4, 4, 8, rope_theta=1e4, attention_bias=False))
CODEC = CodecConfig(30, (1, 2), (4, 3), (8, 5), 16, (3, 5), ((1, 2), (1, 3)))
SMALL = {"prompt": 11, "new": 4, "lengths": (7, 13), "megabytes": 2, "square": 32, "words": 5, "codes": 90, "frames": 40, "short": 6}


class Here:
    """A side in this process, so that the tests need not import torch a dozen times."""

    def __init__(self, who, tasks):
        self.who, self.side, self.tasks = who, process.SIDES[who](), tasks
        self.side.imports = 0  # this process has imported far more than a side would

    def ask(self, task, *arguments):
        self.tasks.append((self.who, task))
        arguments = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(getattr(self.side, task)(*arguments)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return bench.write_models(tmp_path_factory.mktemp("bench"), QWEN, PARTS, SPEECH, CODEC)


def small_bench(folders, tasks, pairs=2, missing=()):
    """A benchmark whose sides append to ``tasks`` which side did what."""
    return bench.Bench(*folders, lambda who: None if who in missing else Here(who, tasks), pairs, SMALL)


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

    for config, width in ((VISION, 64), (bench.VISION, 3584)):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            features = VisionTower(config)(torch.empty(1, 3, config.image_size, config.image_size))
            Projector(config.feature_size, width)(features)
        assert bench.tile_flops(config, width) == counter.get_total_flops()


FIGURES = {  # side, how it was loaded, rows -> figures
    ("ours", None, 1): {"decode": 10, "prefill": 100},
    ("ours", None, 4): {"decode": 24},
    ("ours", "packed", 1): {"decode": 8, "prefill": 120},
    ("ours", "packed", 4): {"decode": 32},
    ("ours", "int8", 1): {"decode": 15, "prefill": 90},
    ("ours", "int4", 1): {"decode": 30, "prefill": 70},
    ("ours", None, "growth"): {"bytes": 1e6},
    ("ours", "int8", "growth"): {"bytes": 2e6},
    ("ours", "int4", "growth"): {"bytes": 3e6},
    ("theirs", None, 1): {"decode": 4, "prefill": 80},
    ("theirs", None, 4): {"decode": 16},
    ("limits", None, "bus"): {"bytes_per_s": 1e9},
    ("limits", None, "matmul"): {"flops": 3e9},
    ("ours", None, "picture"): {"tile_s": 1},
    ("ours", None, "sound"): {"sound_s": 2},
    ("ours", None, "speak"): {"tokens": 30, "sound_s": 4, "vocode_s": 1, "stream_s": 2, "first_s": 0.5},
}


class Fixed:
    """A side whose figures are known: in the k-th turn k times the given ones, and nonsense in the warm-up."""

    def __init__(self, who):
        self.who, self.option, self.turns = who, None, {}

    def ask(self, task, *arguments):
        if task == "load":
            self.option = arguments[2] if len(arguments) > 2 else None
            return {}
        key = self.who, self.option, arguments[1] if task == "tokens" else task
        self.turns[key, arguments] = turn = self.turns.get((key, arguments), -1) + 1
        return {name: value * (turn or 1e6) for name, value in FIGURES[key].items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


# what a row must say after three turns: ours in the median, and the ratio, which is the same in each turn
READ = bench.read_elements(QWEN.decoder) / 1e9
TILE = bench.tile_flops(VISION, PARTS.decoder.hidden_size) / 1e9
CODES = CODEC.sampling_rate / CODEC.hop
EXPECTED = {
    "bus": [(3, None)],
    "decode": [(20, 10 / 4), (20 * 2 * READ, 10 * 2 * READ)],
    "float32": [(20, 10 / 4), (20 * 4 * READ, 10 * 4 * READ)],
    "prefill": [(200, 100 / 80), (200, 100 / 80)],
    "batch": [(48, 24 / 16), (48, 24 / 10)],
    "packed": [(240, 120 / 80), (16, 8 / 4), (64, 32 / 16), (64, 32 / 10)],
    "int8": [(30, 15 / 10), (180, 90 / 100)],
    "int4": [(60, 30 / 10), (140, 70 / 100)],
    "sound": [(4, 1)],
    "speech": [(60, None), (1 / 4, 4), (2 / 4, 2), (1.0, None)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_has_the_median_of_the_turns_that_count_and_the_ratio_of_each(folders, name):
    rows = getattr(bench.Bench(*folders, Fixed, 3, SMALL), name)()
    assert len(rows) == len(EXPECTED[name])
    for row, (ours, ratio) in zip(rows, EXPECTED[name]):
        assert row.ours == pytest.approx(ours), row
        assert ratio is None or row.ratios == pytest.approx((ratio,) * 3), row
        assert (row.met is None) == (row.goal is None)


def test_what_a_prompt_needs_is_compared_with_the_largest_matrix(folders):
    largest = 2 * QWEN.decoder.vocab_size * QWEN.decoder.hidden_size
    for row, grown in zip(bench.Bench(*folders, Fixed, 3, SMALL).growth(), (1e6, 2e6, 3e6)):
        assert row.ratios == pytest.approx([k * grown / largest for k in (1, 2, 3)])


@pytest.mark.parametrize("kind, column", [("avx2", 0), ("avx512_vnni", 0), ("avx512_bf16", 1), ("amx", 1), ("other", 0)])
def test_goals_are_those_of_the_class_of_processor(folders, monkeypatch, kind, column):
    monkeypatch.setattr(bench, "processor_class", lambda: kind)
    [row, _] = bench.Bench(*folders, Fixed, 3, SMALL).int4()
    assert row.goal == bench.GOALS["decode, int4"][column]


def test_the_memory_of_a_prompt_is_its_peak_over_what_was_there(folders):
    side = process.Ours()
    side.load(str(folders[0]), "bfloat16", "int4")
    assert 0 <= side.growth(6)["bytes"] < 1e9


def test_the_speed_of_speech_is_compared_with_that_of_its_sound(folders):
    row = bench.Bench(*folders, Fixed, 3, SMALL).speech()[0]
    assert row.other == pytest.approx(CODES) and row.ratios == pytest.approx([30 * k / CODES for k in (1, 2, 3)])


def test_the_products_of_a_tile_are_compared_with_those_of_a_square(folders):
    for row in bench.Bench(*folders, Fixed, 3, SMALL).picture()[1:]:
        assert row.ours == pytest.approx(TILE / 2)  # of TILE in 1, 2 and 3 seconds
        assert row.other == 6 and row.ratios == pytest.approx([TILE / k / (3 * k) for k in (1, 2, 3)])


@pytest.mark.parametrize("name", ["bus", "decode", "picture", "sound", "int4", "speech"])
def test_real_sides_answer_with_the_figures_that_the_rows_need(folders, name):
    for row in getattr(small_bench(folders, [], missing=("theirs",)), name)():
        assert row.ours > 0 and all(ratio > 0 for ratio in row.ratios)


def test_a_generation_is_timed_from_its_start_and_between_its_first_and_last_token():
    assert process.rates(10.0, [12.0, 12.5, 13.0], batch=4, prompt=11, new=3) == {"first_s": 2, "prefill": 22, "decode": 8}
    with pytest.raises(RuntimeError, match="expected 4 tokens, but 3 were generated"):
        process.rates(10.0, [12.0, 12.5, 13.0], 4, 11, 4)


# ---- products of few rows


def clock_of(costs):
    """A clock that only the ways move, and ways with a cost in seconds each."""
    now, order = [0.0], []

    def way(name):
        def run(rows, weight):
            order.append((name, id(weight)))
            now[0] += costs[name][0] if len(costs[name]) == 1 else costs[name].pop(0)

        return run

    return lambda: now[0], {name: way(name) for name in costs}, order


def test_ways_take_turns_over_cold_copies_and_the_first_turn_does_not_count():
    clock, ways, order = clock_of({"plain": [9.0, 1.0, 3.0, 2.0], "other": [4.0]})
    copies = [torch.zeros(2_500_000) for _ in range(3)]  # 10 MB: one product is a trial
    assert products.times(None, copies, ways, 3, clock) == {"plain": 2.0, "other": 4.0}
    assert [name for name, _ in order] == ["plain", "other"] * 4
    assert [i for _, i in order] == [id(copies[k % 3]) for k in range(8)]


def test_small_matrices_are_multiplied_several_times_in_a_trial():
    clock, ways, order = clock_of({"plain": [1.0]})
    assert products.times(None, [torch.zeros(1_000_000)], ways, 1, clock) == {"plain": 1.0}
    assert len(order) == 2 * 4


def test_a_way_is_supported_only_if_it_beats_plain_clearly_and_loses_nowhere():
    plain = [1.0, 1.0, 1.0]
    assert products.supported({"plain": plain, "halves": [1.05, 1.09, 1.08]}) == "plain"
    assert products.supported({"plain": plain, "halves": [1.2, 1.3, 1.0], "widened": [1.1, 1.2, 1.15]}) == "halves"
    assert products.supported({"plain": plain, "halves": [1.2, 9.0, 0.8], "widened": [1.1, 1.2, 1.15]}) == "widened"
    assert products.supported({"plain": plain, "columns": [5.0, 5.0, 5.0]}) == "plain"  # not a way of the table


def test_ratios_are_those_of_plain_to_the_way_for_every_size_and_number_of_rows(monkeypatch):
    clock, ways, _ = clock_of({"plain": [3.0], "other": [2.0]})
    times, cold = products.times, []

    def watched_times(rows, copies, *rest):
        cold.append(sum(copy.nbytes for copy in copies) if len({copy.data_ptr() for copy in copies}) == len(copies) else 0)
        return times(rows, copies, *rest)

    monkeypatch.setattr(products, "times", watched_times)
    sizes = {(1000, 2000): 1, (2000, 1000): 2}
    for row_class, count in (("2-3", 4), ("many", 2)):  # the larger matrix is left out for many rows
        every = products.ratios(torch.float32, row_class, sizes, ways, 1, clock)
        assert every == {"plain": [1.0] * count, "other": [1.5] * count}
    assert min(cold) >= products.MEMORY  # distinct copies, more than any cache holds


def test_the_report_names_the_class_and_both_choices(monkeypatch, capsys):
    every = {name: [1.0] for name in products.CANDIDATES} | {"halves": [1.5]}
    monkeypatch.setattr(products, "ratios", lambda *args, **kwargs: every)
    monkeypatch.setattr(products.products, "processor_class", lambda: "avx512_bf16")
    products.report(1, 1, dtypes=(torch.float32,), classes=("1", "many"))
    head, names, _, first, last = capsys.readouterr().out.splitlines()
    assert head.startswith("class avx512_bf16, 1 thread:")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (names, first, last)]
    assert cells[0] == ["dtype", "rows", "halves", "folded", "widened", "columns", "supports", "table"]
    assert cells[1][:3] == ["float32", "1", "1.50 [1.50..1.50]"] and cells[1][-2:] == ["halves", "halves"]
    assert cells[2][-2:] == ["halves", "plain"]


# ---- processes and turns


def test_a_side_in_a_process_of_its_own_loads_and_measures_memory_and_its_end_is_an_error(folders, capfd):
    with process.Side("ours", 1) as side:
        assert side.ask("load", str(folders[0]), "bfloat16")["load_s"] > 0
        rates = side.ask("tokens", 6, 2, 3)
        assert rates["prefill"] == pytest.approx(2 * 6 / rates["first_s"]) and rates["decode"] > 0
        memory = side.ask("memory")
        assert 50e6 < memory["imports"] < memory["peak"]
        with pytest.raises(RuntimeError, match="'ours' ended during load"):
            side.ask("load", "/nowhere", "bfloat16")
    assert "not a checkpoint folder" in capfd.readouterr().err


def test_loading_and_peak_memory_are_measured_in_a_new_side_each(folders):
    pytest.importorskip("transformers")
    tasks = []
    work = small_bench(folders, tasks)
    rows = [*work.load(), *work.memory(), *work.long()]
    loaded = [who for who, task in tasks if task == "load"]
    assert loaded == ["ours", "theirs"] * (1 + 2) + ["ours", "theirs"] + ["ours"] * len(SMALL["lengths"])
    assert all(row.ours > 0 for row in rows) and [row.goal is not None for row in rows] == [1, 1, 0, 1, 0, 0, 0, 0, 1]
    assert rows[3].other == pytest.approx(bench.least_bytes(QWEN.decoder, 11 + 8) / 1e9)


def test_sides_take_turns_and_do_only_once_what_two_rows_need(folders):
    pytest.importorskip("transformers")
    tasks = []
    work = small_bench(folders, tasks)
    work.decode()
    turn = [("limits", "bus"), ("ours", "tokens"), ("theirs", "tokens")]
    assert tasks == [("ours", "load"), ("theirs", "load"), *turn, *turn, *turn]
    work.float32(), work.decode()
    assert len(tasks) == 2 * (2 + 3 * 3)


def test_without_transformers_our_figures_stand_alone(folders):
    work = small_bench(folders, [], missing=("theirs",))
    rows = [*work.decode(), *work.prefill(), *work.batch(), *work.load(), *work.memory()]
    alone = [row for row in rows if row.other == bench.MISSING]
    assert len(alone) == 8 and all(row.ours > 0 and row.met is None and not row.ratios for row in alone)
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
