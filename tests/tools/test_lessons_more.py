"""What stands on the lessons: the loop, the swap, the cards, the experiments with training, and the porter's walk."""

import io
import random
import re

import learner
import pytest
import torch
from test_lessons import functions, run_in, write

from tools import dump
from tools.demo import questions, scene
from tools.lessons import change, port, run, swap
from tools.lessons.check import check
from tools.lessons.demo import demo, example

LOOP = run.lesson_of(12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a learner has done lessons 1 to 10, and 12."""
    folder = tmp_path_factory.mktemp("finished")
    work = run.Work(folder)
    for number in (*range(1, 11), 12):
        write(folder, number)
        work.note(number, done=True, failures=0)
    return folder


# ---- lesson 12


def test_the_loop_of_the_package_passes():
    report = check(LOOP, LOOP.reference)
    assert report.ok, report.lines


def test_a_loop_written_by_hand_answers_about_the_jpeg_with_the_learners_own_parts(finished, capsys):
    assert run_in(finished, 12) == 0
    assert "ok   the demo weights and the JPEG" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "old", "new"), learner.PLANTS[12], ids=lambda x: None)
def test_a_typical_mistake_in_a_learners_loop_is_recognised(name, old, new):
    text = learner.SOLUTIONS[12]
    assert text.count(old) == 1
    report = check(LOOP, functions(text.replace(old, new)))
    assert report.mistake == name, report.lines


# ---- the swap


def test_the_real_model_answers_with_the_learners_parts(finished, capsys):
    assert run_in(finished, "swap") == 0
    out = capsys.readouterr().out
    expected = demo().respond(images=[example()])
    first, second, third = out.splitlines()
    assert first.endswith(f": {expected}") and third.endswith(f": {expected}")
    assert all(f"your {name}" in first for name in swap.PARTS)
    assert float(re.search(r"at most ([\d.e-]+)\.$", second).group(1)) < 1e-3


def test_every_part_of_the_model_is_really_replaced():
    """Each part in turn gives zeros, or nothing at all: the logits change, and afterwards they are as before."""
    with torch.inference_mode():
        own = swap.first_logits(demo(), example(), None)
    for name, (number, _) in swap.PARTS.items():
        if name == "sampling":
            continue  # it acts behind the logits
        parts = functions(learner.SOLUTIONS[number])
        broken = next(f for f in ("rms_norm", "rotate", "attention", "layer", "Cache", "cut", "block", "image_rows", "splice") if f in parts)
        with torch.inference_mode(), swap.swapped({number: parts | {broken: broken_version(parts[broken])}}) as called:
            try:
                changed = not torch.allclose(swap.first_logits(demo(), example(), None), own, atol=1e-3)
            except ValueError:
                changed = True
        assert changed and name in called, name
    with torch.inference_mode():
        assert torch.equal(swap.first_logits(demo(), example(), None), own)


def broken_version(part):
    if isinstance(part, type):
        return type("Broken", (part,), {"write": lambda self, layer, keys, values: (0 * keys, 0 * values)})

    def broken(*args):
        out = part(*args)
        return (0 * out[0], *out[1:]) if isinstance(out, tuple) else 0 * out

    return broken


def test_sampling_of_a_learner_is_used_in_generation():
    parts = functions(learner.SOLUTIONS[6])
    always = dict(parts, probabilities=lambda logits, *a: torch.eye(logits.shape[1])[[7] * len(logits)])
    with swap.swapped({6: always}):
        assert demo().generate(torch.tensor([[5, 6]]), max_new_tokens=2, eos_token_id=()).tolist() == [[7, 7]]


def test_a_swap_without_a_finished_lesson_says_so(tmp_path, capsys):
    assert run_in(tmp_path, "swap") == 1
    assert "No lesson is done yet" in capsys.readouterr().out


# ---- the porter's walk


@pytest.mark.parametrize("number", port.PORTS)
def test_a_port_has_the_wrong_tensors_that_it_says_and_no_others(number, tmp_path):
    from safetensors.torch import load_file

    wrong = port.write(number, tmp_path)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (port.demo_folder(), tmp_path))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == sorted(wrong, key=list(ours).index)
    for name in wrong:
        assert port.guess(number, name)[0]
    assert not port.guess(number, "model.norm.weight")[0] and not port.guess(number, "nonsense")[0]


def test_the_walk_finds_a_missing_bias_in_four_commands(tmp_path, capsys):
    assert run_in(tmp_path, "port", 1) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("    python ")]
    assert len(commands) == 4
    for command in commands[:2]:
        words = [str(example()) if word.endswith("example.jpg") else word for word in command[2:]]
        assert dump.main([*words, "--max-new-tokens", "1"]) == 0
    capsys.readouterr()
    assert dump.main(commands[2][2:]) == 1
    first = re.search(r"first off: (\S+);", capsys.readouterr().out).group(1)
    layer = int(re.fullmatch(r"decoder\.layers\.(\d+)\.v", first).group(1))  # the value, and nothing before it
    guess = [f"model.layers.{layer}.self_attn.v_proj.bias" if word == "NAME" else word for word in commands[3][2:]]
    assert run.main([guess[0], guess[1], *guess[2:]]) == 0
    assert "Found" in capsys.readouterr().out
    assert run.Work(tmp_path).done("port 1")


# ---- change something


@pytest.fixture(scope="module")
def world():
    return change.World()


def test_the_answers_that_count_as_right_are_those_that_the_model_gives(world):
    """`exact_answers` on the trainer's rows agrees with `respond` on the same pictures, answer by answer."""
    rng = random.Random(3)
    scenes = [scene.sample_scene(rng) for _ in range(4)]
    turns = [questions.ask(s, "color", rng) or questions.ask(s, "count", rng) for s in scenes]
    pixels = change.as_pixels([change.draw.picture(s, random.Random(i), world.config.vision.image_size) for i, s in enumerate(scenes)], world.config)
    with torch.no_grad():
        features = world.vita.projector(world.vita.vision(pixels))
    packer = world.packer(random.Random(0))
    made = [world.row(1, [[turn._replace(kind="x") if hasattr(turn, "_replace") else turn]], packer) for turn in turns]
    for turn, row, x, seen in zip(turns, made, pixels, features):
        text = world.sp.decode([t for t in row.ids[row.ids.index(change.rows.IMAGE) :] if t >= 0])
        [(_, right)] = world.marks(seen[None], [row])
        asked = text.split("<|assistant|>")[0]
        said = world.vita.respond(asked.strip(), images=[x], max_new_tokens=40)
        assert right == (said == turn.answers[0]), (asked, said, turn.answers)


@pytest.mark.parametrize("name", change.EXPERIMENTS)
def test_an_experiment_trains_and_shows_a_table(name, capsys, monkeypatch):
    monkeypatch.setattr(change, "BATCH", 2)
    values, before, after = change.EXPERIMENTS[name](steps=2, count=2)
    out = capsys.readouterr().out
    assert len(values) == 2 and len(before) == len(after) > 0
    assert "0 +--> steps" in out and "question" in out and re.search(r"all +\d+", out)


def test_the_loss_falls_for_a_projector_on_one_batch(world):
    rng = random.Random(0)
    scenes = [scene.sample_scene(rng) for _ in range(2)]
    seen, packer = world.tower(scenes, rng), world.packer(rng)
    made = [world.row(1, packer.turns(s, talks=False), packer) for s in scenes]
    projector = change.Vita(world.config).projector
    world.vita.projector, kept = projector, world.vita.projector
    values = change.train(projector.parameters(), lambda: world.losses(projector(seen), made), 1, rate=3e-3, steps=5, curve=change.Curve(io.StringIO()))
    world.vita.projector = kept
    assert values[-1] < values[0]
    assert all(p.grad is None for p in world.vita.decoder.parameters())  # the decoder stays as it is


def test_a_new_colour_must_be_new(tmp_path, capsys):
    assert run_in(tmp_path, "change", "colour", "--name", "red") == 2
    assert run_in(tmp_path, "change", "colour", "--rgb", "1,2") == 2
    assert "--rgb" in capsys.readouterr().err


def test_the_curve_is_drawn_over_itself_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    curve = change.Curve(Terminal())
    for value in (3.0, 2.0):
        curve.last = 0
        curve.add(value, 1, 60)
    out = curve.file.getvalue()
    assert out.count("\x1b[12A") == 1 and "2 steps, loss 2.500" in out


def test_a_plot_shows_falling_values_from_the_upper_left_to_the_lower_right():
    lines = change.plot([3.0, 2.0, 1.0, 0.0], width=4, height=4)
    assert [line.partition("|")[2] for line in lines[:4]] == ["*   ", " *  ", "  * ", "   *"]
    assert lines[0].startswith("  3.00 |")
