"""A decoder split over two processes against one process: the same answers, half the memory, one output.

The processes are started once. Each saves its results, and the tests compare them.
"""

import contextlib
import io
import os
import re
import socket
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch

from tools import make_checkpoint
from vita_ref import Vita, VitaConfig, generate
from vita_ref.config import DecoderConfig, VisionConfig
from vita_ref.scale import METHODS, parallel
from vita_ref.scale.products import can_pack

SIZES = DecoderConfig(301, 35, 41, 2, 12, 4, 6)  # the ranks do not get equal parts of V, D and F
CONFIGS = {
    "untied": SIZES,
    "tied": replace(SIZES, tie_word_embeddings=True),
    "odd": replace(SIZES, num_key_value_heads=3),
    "misshapen": SIZES,
}
INTERNVL = replace(SIZES, vocab_size=305), replace(make_checkpoint.INTERNVL3.vision, hidden_size=16, intermediate_size=20)
INTERNVL = INTERNVL[0], replace(INTERNVL[1], num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=7)
PROMPT, NEXT = torch.arange(5, 18).view(1, -1), torch.arange(40, 42).view(1, -1)
SAMPLED = {"do_sample": True, "max_new_tokens": 7, "eos_token_id": ()}
VISION = VisionConfig(16, 20, 1, 2, image_size=28, patch_size=7)
FLAGS = ("--prompt", "hi", "--max-new-tokens", "6", "--model")


def results(folder, **options):
    """The results of one process with the checkpoint of a folder."""
    vita = Vita.from_pretrained(folder, **options)
    with torch.inference_mode():
        first = vita(PROMPT)
        chunk = vita(NEXT, cache=first.cache)
        sampled = vita.generate(PROMPT, **SAMPLED), vita.generate(PROMPT, **SAMPLED)
        seeded = vita.generate(PROMPT, **SAMPLED, generator=torch.Generator().manual_seed(3))
    return {
        "logits": torch.cat([first.logits, chunk.logits], 1),
        "sampled": torch.stack(sampled),
        "seeded": seeded,
        "greedy": vita.generate(PROMPT, max_new_tokens=7, eos_token_id=()),
        "decoder": {n: list(p.shape) for n, p in vita.decoder.named_parameters()},
        "vision": {n: p.clone() for n, p in vita.vision.named_parameters()},
        "contiguous": all(p.is_contiguous() for p in vita.decoder.parameters()),
        "cache": first.cache.nbytes,
    }


def command(*flags):
    """Status, standard output and standard error of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = generate.main(list(map(str, flags)))
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def run_rank(rank, folder, ports):
    """What one of the two processes does. Both begin each step together; each step has a port of its own."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    ports, saved = iter(ports), {}
    os.environ["MASTER_PORT"] = next(ports)
    with parallel.process_group("cpu"):
        saved["untied"] = results(folder / "untied", split=True)
        saved["tied"] = results(folder / "tied", split=True)
        for method in METHODS:
            saved[method] = results(folder / "untied", split=True, quantize=method)
        saved["packed"] = results(folder / "untied", split=True, pack=can_pack(torch.float32))
        saved["internvl"] = results(folder / "internvl", split=True)
    commands = {
        "answer": (*FLAGS, folder / "untied"),
        "odd": (*FLAGS, folder / "odd"),
        "misshapen": (*FLAGS, folder / "misshapen"),
        "nowhere": (*FLAGS, folder / ("untied", "nowhere")[rank]),  # an error on the second rank only
        "nonsense": ("--nonsense",),
    }
    for name, flags in commands.items():
        os.environ["MASTER_PORT"] = next(ports)
        saved[name] = command(*flags)
    os.environ["MASTER_PORT"] = next(ports)
    with parallel.process_group("cpu"):
        if rank == 0:
            try:
                parallel.all_sum(torch.ones(3))
            except ValueError as error:
                saved["peer ended"] = str(error)
    torch.save(saved, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results of the two processes, and of one process with the whole decoder."""
    folder = tmp_path_factory.mktemp("parallel")
    for name, sizes in CONFIGS.items():
        config = replace(VitaConfig.preset("demo"), decoder=sizes, vision=VISION, audio=None, template="chatml")
        make_checkpoint.write(folder / name, "demo", seed=3, config=replace(config, eos_token_ids=(300,)))
    config = replace(make_checkpoint.INTERNVL3, decoder=INTERNVL[0], vision=INTERNVL[1], eos_token_ids=(300,))
    make_checkpoint.write(folder / "internvl", "internvl3-1b", "float32", seed=3, config=config)
    config = folder / "misshapen" / "config.json"
    config.write_text(config.read_text().replace(str(SIZES.intermediate_size), "43"))
    with contextlib.ExitStack() as stack:  # all open at once, so that the ports differ
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(7)]
        ports = [str(s.getsockname()[1]) for s in sockets]
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch"])  # imported once for both
    workers = [context.Process(target=run_rank, args=(rank, folder, ports)) for rank in range(2)]
    for worker in workers:
        worker.start()
    whole = {"untied": results(folder / "untied"), "tied": results(folder / "tied")}
    whole |= {method: results(folder / "untied", quantize=method) for method in METHODS}
    whole["answer"] = command(*FLAGS, folder / "untied")
    whole |= {"packed": whole["untied"], "internvl": results(folder / "internvl")}
    for worker in workers:
        worker.join(100)
        if worker.is_alive():
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return SimpleNamespace(whole=whole, ranks=[torch.load(folder / f"rank{r}.pt") for r in range(2)])


@pytest.mark.parametrize("kind", ["untied", "tied", "packed", "internvl"])
def test_the_logits_are_those_of_one_process_within_rounding(run, kind):
    want = run.whole[kind]["logits"]
    for rank in run.ranks:
        assert rank[kind]["logits"].shape == want.shape == (1, 15, SIZES.vocab_size + 4 * (kind == "internvl"))
        assert (rank[kind]["logits"] - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("kind", ["untied", "tied", *METHODS, "packed"])
def test_every_rank_has_the_same_bits_and_samples_the_same_tokens(run, kind):
    first, second = (rank[kind] for rank in run.ranks)
    for name in ("logits", "greedy", "seeded", "sampled"):
        assert first[name].equal(second[name])
    assert not first["sampled"][0].equal(first["sampled"][1])


@pytest.mark.parametrize("kind", ["untied", "tied", "packed", "internvl"])
def test_tokens_are_those_of_one_process(run, kind):
    for name in ("greedy", "seeded"):
        assert run.ranks[0][kind][name].equal(run.whole[kind][name])


@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_quantising_is_at_most_one_and_a_half_times_that_of_one_process(run, method):
    exact, whole, split = (r["logits"] for r in (run.whole["untied"], run.whole[method], run.ranks[0][method]))
    assert 0 < (split - exact).abs().max() < 1.5 * (whole - exact).abs().max()


@pytest.mark.parametrize("kind", ["untied", "tied", "internvl"])
def test_each_rank_holds_its_part_of_every_matrix_and_of_the_cache(run, kind):
    whole, parts = run.whole[kind]["decoder"], [rank[kind]["decoder"] for rank in run.ranks]
    assert all(part.keys() == whole.keys() for part in parts)
    for name, shape in whole.items():
        split_axes = [axis for axis, size in enumerate(shape) if parts[0][name][axis] != size]
        if "norm" in name:
            assert parts[0][name] == parts[1][name] == shape
        else:
            (axis,) = split_axes
            sizes = [part[name][axis] for part in parts]
            assert sum(sizes) == shape[axis] and max(sizes) - min(sizes) <= 1
    for rank in run.ranks:
        assert 2 * rank[kind]["cache"] == run.whole[kind]["cache"] and rank[kind]["contiguous"]


def test_the_vision_tower_is_whole_on_every_rank(run):
    whole = run.whole["untied"]["vision"]
    for part in (rank["untied"]["vision"] for rank in run.ranks):
        assert part.keys() == whole.keys() and all(part[name].equal(whole[name]) for name in whole)


def test_only_the_first_rank_prints_and_its_output_is_that_of_one_process(run):
    assert run.ranks[0]["answer"] == run.whole["answer"] and run.whole["answer"][0] == 0
    assert run.ranks[1]["answer"] == (0, "", "")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("odd", "3 key.*12 query.* 2 processes"),
        ("misshapen", r"\[41, 35\], expected \[43, 35\]"),  # whole shapes, not this rank's
        ("nowhere", "nowhere"),
        ("nonsense", "--nonsense"),
    ],
)
def test_an_error_on_any_rank_ends_all_ranks_with_one_line(run, kind, message):
    status, out, err = run.ranks[0][kind]
    assert status == 2 and out == "" and err.count("\n") == 1 and re.search(message, err)
    assert run.ranks[1][kind] == (2, "", "")


def test_a_rank_gets_an_error_if_another_rank_has_ended(run):
    assert "another of the 2 processes has ended" in run.ranks[0]["peer ended"]


@pytest.mark.parametrize("flags", [("--speak", "x.wav"), ("--image", "-")])
def test_options_that_need_one_process_are_refused_in_several_processes(monkeypatch, flags):
    args = generate.parser().parse_args(flags)
    generate.check(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"leave out .*{flags[0]}"):
        generate.check(args)
