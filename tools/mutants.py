"""Plants one-line bugs, one at a time, in a copy of the project and prints which test catches each.

    python tools/mutants.py [-k PART_OF_A_NAME] [--quirks]

One line for each bug: its name, the first test that fails, and the time that this took. Exit status 1 if no test fails
for a bug. The program stops at once if the unchanged copy fails, or if the text of a bug is no longer in its file.
`--quirks` plants only the corrections of quirks (see tests/QUIRKS.md): upstream's behaviour that must be kept.

Test: ``pytest tests/tools/test_mutants.py``
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("vita_ref", "tests", "tools", "weights", "setup.cfg", "pyproject.toml")
LIMIT = 900  # seconds for one run of tests; a longer run is an error and no catch: the machine may be busy
NO_SHRINKING = """
from hypothesis import Phase, settings

settings.register_profile("no shrinking", phases=(Phase.explicit, Phase.generate))
settings.load_profile("no shrinking")
"""  # for conftest.py of the copy: to make a failing example smaller can take minutes


class Mutant(NamedTuple):
    """A bug: in ``file`` of vita_ref/, ``old``, which is there exactly once, becomes ``new``. ``tests`` should fail.

    ``tests`` is a file of tests/, or one test in it. ``quirk``: words of the `# quirk:` comment that the bug corrects.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    quirk: str = ""


SPLICES = "test_golden_splice.py"
BUGS = [
    # ---- the decoder
    Mutant("q bias dropped", "decoder.py", "q = self.q_proj(x)", "q = F.linear(x, self.q_proj.weight)", SPLICES),
    Mutant("k bias dropped", "decoder.py", "k = self.k_proj(x)", "k = F.linear(x, self.k_proj.weight)", SPLICES),
    Mutant("rope halves interleaved", "decoder.py",
           "x.float().chunk(2, -1)",
           "x.float().unflatten(-1, (-1, 2)).unbind(-1)", SPLICES),
    Mutant("norm eps ten times too large", "decoder.py", "+ self.eps)", "+ 10 * self.eps)", SPLICES),
    Mutant("heads share the wrong keys in decoding", "decoder.py",
           "q = q.reshape(b, groups, heads // groups, size)",
           "q = q.reshape(b, heads // groups, groups, size).transpose(1, 2)", "test_batches.py"),
    Mutant("heads share the wrong keys in the eager path", "decoder.py",
           "q.reshape(b, k.shape[1], -1, size) * size**-0.5",
           "q.reshape(b, -1, k.shape[1], s, size).transpose(1, 2).reshape(b, k.shape[1], -1, size) * size**-0.5",
           "test_decoder.py"),
    Mutant("a block of queries uses the last values", "decoder.py", "v[:, :, :end]", "v[:, :, -end:]", "test_decoder.py"),
    Mutant("labels shifted", "decoder.py", "targets = labels[:, 1:]", "targets = labels[:, :-1]", "test_model.py"),
    Mutant("state labels counted in the loss", "decoder.py", "(targets < 0, -100)", "(targets < -100, 0)", "test_model.py"),
    Mutant("causal mask lost on a second chunk", "masks.py",
           "return (keys <= queries)[None, None]", "return None", "test_batches.py"),
    Mutant("padding attended", "masks.py",
           "(keys <= queries) & self.real[:, None, : len(keys)] |",
           "(keys <= queries).expand(len(self.real), -1, -1) |", "test_batches.py"),
    Mutant("queries of a later block counted from the first", "masks.py",
           "keys[self.past + start :, None]",
           "keys[self.past : self.past + stop - start, None]", "test_decoder.py"),
    Mutant("position ids count padding", "masks.py", "counted = new.long().cumsum(1)",
           "counted = torch.ones_like(new).long().cumsum(1)", "test_batches.py"),
    # ---- the cache
    Mutant("position off by one after the prompt", "cache.py", "used + 1, 0)", "used, 0)", "test_batches.py"),
    Mutant("positions go on behind the padding", "cache.py", "used + 1, 0)", "self.length, 0)", "test_batches.py"),
    Mutant("truncate keeps the length", "cache.py", "        self.length = length\n", "", "test_batches.py"),
    # ---- sampling
    Mutant("the lowest id of equal logits loses", "sampling.py", "return logits.argmax(-1)",
           "return logits.shape[-1] - 1 - logits.flip(-1).argmax(-1)", "test_sampling.py"),
    Mutant("negative logits become likelier by the penalty", "sampling.py",
           "torch.where(logits > 0, logits / penalty, logits * penalty)", "logits / penalty", "test_sampling.py"),
    Mutant("top-p drops the token that reaches p", "sampling.py", "removed = before >= p", "removed = before + probs >= p",
           "test_sampling.py"),
    Mutant("top-k keeps one token too many", "sampling.py", "logits.topk(k).values", "logits.topk(k + 1).values",
           "test_sampling.py"),
    Mutant("all rows draw from one generator", "sampling.py",
           "for seed in seeds.tolist()]", "for seed in seeds[:1].tolist() * rows]", "test_sampling.py"),
    # ---- the splice
    Mutant("media order swapped", "splice.py", "kind: iter(values) for", "kind: iter(values[::-1]) for", "test_splice.py"),
    Mutant("truncation keeps the end", "splice.py", "Row(row.embeds[:length],", "Row(row.embeds[-length:],", "test_splice.py"),
    Mutant("stride restarts where images touch", "splice.py",
           "if merged and merged[-1][1] == start:", "if False:", "test_splice.py"),
    Mutant("position off by one after the splice", "splice.py",
           "return steps.cumsum(0) - 1",
           "return steps.cumsum(0) - 1 + (torch.arange(length) >= (merged[-1][1] if merged else length))",
           "test_splice.py"),
    Mutant("state label on a sound's first position", "splice.py", "label[-1:] = ", "label[:1] = ",
           "test_splice.py"),
    Mutant("labels kept under images", "splice.py",
           "labels.new_full(part.shape[:1], IGNORE)", "labels[start].repeat(len(part))", "test_splice.py"),
    Mutant("left padding put on the right", "splice.py", 'if side == "left" else 0', "if not side else 0", "test_splice.py"),
    # ---- the towers
    Mutant("height and width swapped in the shuffle", "vision.py",
           "return x.transpose(2, 3).flatten(3)", "return x.permute(0, 1, 3, 4, 2, 5).flatten(3)", SPLICES),
    Mutant("the last patch dropped for the class token", "vision.py", "x = x[:, 1:]", "x = x[:, :-1]", SPLICES),
    Mutant("another eps in the norm of InternVL's projector", "vision.py",
           "nn.LayerNorm(feature_size)", "nn.LayerNorm(feature_size, eps=0.1)", "test_internvl.py"),
    Mutant("q and k not normalised in Qwen3", "decoder.py",
           "q, k = self.q_norm(q), self.k_norm(k)", "q = self.q_norm(q)",
           "test_decoder.py::test_qwen3_normalises_each_head_of_q_and_k_before_the_rotation"),
    # ---- the model
    Mutant("sounds keep their padding", "inputs.py",
           "(e[: audio_token_count(len(bank)) + prompts] for", "(e for", "test_batches.py"),
    Mutant("the first token comes from the last column", "model.py",
           "last_hidden(out.last_hidden_state, mask)", "out.last_hidden_state[:, -1]", "test_batches.py"),
    Mutant("ended rows go on", "model.py", "chosen.masked_fill(ended, padding)", "chosen", "test_batches.py"),
    # ---- conversations
    Mutant("a conversation's cache is not cut back", "chat.py", "self._cache.truncate(past)", "pass", "test_chat.py"),
    Mutant("one id too many is kept in the cache", "chat.py", "zip(known, elements[:-1])", "zip(known, elements)", "test_chat.py"),
    Mutant("an answer is written again as text", "dialogue/messages.py",
           "if not message.ids:", "if message.ids:", "test_chat.py"),
    Mutant("the text before a stop text is cut too early", "answer.py",
           "len(stop) > n and stop.startswith", "stop.startswith", "test_stream.py"),
    # ---- files
    Mutant("a tensor skipped where the map changes", "files/checkpoint.py",
           "del stored\n                    break", "del stored, names[0]\n                    break",
           "files/test_checkpoint.py"),
    Mutant("weights stay mapped without mmap", "files/checkpoint.py", "return mmap and", "return", "files/test_checkpoint.py"),
    Mutant("q and k swapped where the rows of three tensors are joined", "files/names.py",
           'for x in "qkv")', 'for x in "kqv")', "test_internvl.py"),
    # ---- scale
    Mutant("halves of a product in the wrong order", "scale/products.py",
           "return pair.flatten(0, 1)", "return pair.flip(0).flatten(0, 1)", "scale/test_products.py"),
    Mutant("folded inputs interleaved", "scale/products.py",
           "torch.kron(torch.eye(FOLD, dtype=rows.dtype), rows)",
           "torch.kron(rows, torch.eye(FOLD, dtype=rows.dtype))", "scale/test_products.py"),
    Mutant("bias dropped by fast products", "scale/products.py", "out = out + bias", "out = out", "scale/test_products.py"),
    Mutant("a product chosen by the clock", "scale/products.py",
           'return WAYS[TABLE[processor_class()].get((weight.dtype, row_class(rows)), "plain")]',
           "return [*WAYS.values()][__import__('time').perf_counter_ns() // 1000 % len(WAYS)]", "scale/test_products.py"),
    Mutant("packed bias dropped", "scale/products.py",
           "_linear_pointwise(full, weight, bias,", "_linear_pointwise(full, weight, None,", "scale/test_products.py"),
    Mutant("packed rows behind their padding", "scale/products.py",
           "(0, 0, 0, max(0, 4 - len(rows)))", "(0, 0, max(0, 4 - len(rows)), 0)", "scale/test_products.py"),
    Mutant("rows rounded by the first block's scale", "scale/int8.py",
           "block / steps[:, None]", "block / scale[: len(block), None]", "scale/test_int8.py"),
    Mutant("attention not summed over the ranks", "scale/parallel.py",
           'kind in ("o_proj", "down_proj")', 'kind == "down_proj"', "scale/test_parallel.py"),
    Mutant("every rank's cache has all heads", "scale/parallel.py",
           "num_key_value_heads=groups // ranks", "num_key_value_heads=groups", "scale/test_parallel.py"),
    # ---- analysis
    Mutant("keys counted without values", "analysis/budget.py",
           "return 2 * decoder.num_hidden_layers * rows", "return decoder.num_hidden_layers * rows",
           "analysis/test_budget.py"),
    Mutant("a rank's part rounded down", "analysis/budget.py",
           "-(-getattr(d, name) // ranks)", "getattr(d, name) // ranks", "analysis/test_budget.py"),
]  # fmt: skip

BY_DISTANCE = """    far = torch.stack([p.roll(i, -2) for i in range(p.shape[-2])])
            scores = q @ k.mT + torch.einsum("nhqk,qhpk->nhqp", q, far)
            out = (scores / math.sqrt(q.shape[-1]) + bias[:, :, None]).softmax(-1) @ v
        else:
            out, _ = self.core(q, k, v, bias, spans)
"""
CORRECTIONS = [  # of quirks: each has at least one, with the test that does not allow it
    Mutant("grids of equally many tiles sorted by columns", "image.py",
           "key=lambda grid: grid[0] * grid[1]", "key=lambda grid: (grid[0] * grid[1], grid)",
           "test_image.py::test_with_more_min_tiles_grids_of_equally_many_tiles_have_the_order_of_a_set",
           "order of a Python set"),
    Mutant("features not halved by default", "config.py", "feature_scale: Positive = 0.5", "feature_scale: Positive = 1.0",
           "test_vision.py::test_features_are_halved_as_in_vita_1_5", "Features are multiplied by 0.5"),
    Mutant("features not halved", "vision.py", "x = x * c.feature_scale", "x = x * 1.0",
           "test_vision.py::test_embeddings_layers_shuffle_and_projector_give_the_values_of_upstream",
           "features are halved"),
    Mutant("a norm after the vision tower", "vision.py",
           "x = x * c.feature_scale", "x = F.layer_norm(x, x.shape[-1:]) * c.feature_scale",
           "test_vision.py::test_embeddings_layers_shuffle_and_projector_give_the_values_of_upstream",
           "features are halved"),
    Mutant("all channels of a sound mixed", "fbank.py", "return waveform[0].detach()", "return waveform.mean(0).detach()",
           "test_fbank.py::test_only_the_first_channel_is_used", "channels after the first"),
    Mutant("positions of the audio encoder by distance", "audio.py",
           "    k = k + p  # [N, H, P, K]\n        out, _ = self.core(q, k, v, bias, spans)\n", BY_DISTANCE,
           "test_audio.py::test_each_step_gives_the_values_of_upstream", "rel-enc"),
    Mutant("the adapter padded on both sides", "audio.py",
           "(0, self.padding)", "(self.padding // 2, self.padding - self.padding // 2)",
           "test_audio.py::test_the_adapter_takes_later_positions_and_no_earlier_ones", "padding is on the right"),
    Mutant("a random chunk mask at inference", "audio.py",
           "visible_spans(size, self.config.chunk_size, self.config.left_chunks)",
           "visible_spans(size, int(torch.randint(1, 4, ())) if self.config.dynamic_chunks else self.config.chunk_size,"
           " self.config.left_chunks)",
           "test_audio.py::test_dynamic_chunks_change_nothing", "mask is the same in every call"),
    Mutant("a token across a placeholder", "prompt.py",
           "piece_ids = encode(piece)",
           "piece_ids = encode(first + piece)[len(encode(first)) :]",
           "test_prompt.py::test_each_text_beside_a_placeholder_is_encoded_by_itself", "encoded by itself"),
    Mutant("a newline after the last answer", "prompt.py",
           "ends_with_separator=False,\n            stop=(\"<|im_start|>\",)",
           "ends_with_separator=True,\n            stop=(\"<|im_start|>\",)",
           "test_prompt.py::test_a_vita_prompt_letter_by_letter", "No newline follows"),
    Mutant("a short video chooses among all frames", "video.py",
           "    count = min(max(len(steps), min_frames), max_frames)",
           "    steps = steps if len(steps) >= min_frames else range(first, last + 1)\n"
           "    count = min(max(len(steps), min_frames), max_frames)",
           "test_video.py::test_a_short_video_repeats_frames_up_to_min_frames", "repeating frames"),
    Mutant("a causal mask for the text of speech", "voice/decoder.py", "SEE_ALL, cache)", "type(SEE_ALL)(past), cache)",
           "voice/test_speech_decoder.py::test_the_prefill_is_bidirectional", "both directions"),
    Mutant("the final norm after the text of speech", "voice/decoder.py",
           "return self._run_layers(self.layers, x, cache)", "return self.norm(self._run_layers(self.layers, x, cache))",
           "voice/test_speech_decoder.py::test_the_prefill_does_not_apply_the_final_norm", "both directions"),
    Mutant("the penalty of speech counts a token once", "voice/decoder.py",
           "return logits / penalty**counts", "return logits / penalty ** counts.clamp(max=1)",
           "voice/test_speech_decoder.py::test_the_penalty_divides_once_per_occurrence_and_raises_negative_logits",
           "every occurrence"),
    Mutant("the penalty of speech lowers negative logits", "voice/decoder.py",
           "return logits / penalty**counts",
           "return torch.where(logits > 0, logits / penalty**counts, logits * penalty**counts)",
           "voice/test_speech_decoder.py::test_the_penalty_divides_once_per_occurrence_and_raises_negative_logits",
           "every occurrence"),
    Mutant("the start token of speech not penalised", "speech.py",
           "recent = tokens[-options.penalty_window :]", "recent = tokens[1:][-options.penalty_window :]",
           "test_speech.py::test_the_penalty_window_holds_the_last_tokens_and_counts_the_start_token", "the start token counts"),
    Mutant("the slope of HiFi-GAN before conv_post", "voice/vocoder.py",
           "self.conv_post(F.leaky_relu(x, SLOPE))", "self.conv_post(F.leaky_relu(x, 0.01))",
           "voice/test_vocoder.py::test_golden_embeddings_and_waveform", "leaky ReLU"),
    Mutant("a voice that no stage can take refused", "voice/vocoder.py",
           "        x, context = trim_context(x, context, self.margins[-1])\n",
           "        assert any(up.out_channels == VOICE_SIZE for up in self.ups)\n"
           "        x, context = trim_context(x, context, self.margins[-1])\n",
           "voice/test_vocoder.py::test_the_voice_changes_nothing_if_no_stage_has_its_width", "or nowhere"),
    Mutant("only the quietest window searched", "voice/vocoder.py",
           "end = start + int(offset) + window", "end = start + window",
           "voice/test_vocoder.py::test_the_split_may_lie_behind_the_quietest_window", "offset is added twice"),
]  # fmt: skip
MUTANTS = BUGS + CORRECTIONS


def plant(mutant, folder):
    """The file with the bug in it. Raises: ValueError if its text is not there exactly once."""
    text = (folder / "vita_ref" / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {mutant.old!r} {count} times, expected once")
    return text.replace(mutant.old, mutant.new)


def copy_project(folder):
    """Copies what the tests need, with a conftest.py that does not shrink failing examples."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    with open(folder / "tests" / "conftest.py", "a", encoding="utf-8") as conftest:
        conftest.write(NO_SHRINKING)


def first_failure(tests, folder):
    """The first of the tests that fails in the copy, None if all pass."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--basetemp={folder / 'files'}", *(f"tests/{t}" for t in tests)]
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": LIMIT}
    done = subprocess.run(command, check=False, **options)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failures[0].split(" - ")[0].split(maxsplit=1)[1] if done.returncode else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-k", default="", metavar="PART_OF_A_NAME", help="only the bugs with this in their names")
    p.add_argument("--quirks", action="store_true", help="only the corrections of quirks")
    args = p.parse_args()
    chosen = [m for m in (CORRECTIONS if args.quirks else MUTANTS) if args.k in m.name]
    if not chosen:
        p.error("no bug has that in its name")
    survivors, width = [], max(len(m.name) for m in chosen)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_project(folder)
        bugs = [plant(m, folder) for m in chosen]  # all of them before any test runs
        tests = sorted({m.tests for m in chosen})
        if (broken := first_failure(tests, folder)) is not None:
            raise RuntimeError(f"without any bug, {broken} fails")
        print(f"{len(chosen)} bugs; without any, their tests pass", flush=True)
        for mutant, text in zip(chosen, bugs):
            file, start = folder / "vita_ref" / mutant.file, time.perf_counter()
            unchanged = file.read_text(encoding="utf-8")
            file.write_text(text, encoding="utf-8")
            failure = first_failure([mutant.tests], folder)
            file.write_text(unchanged, encoding="utf-8")
            survivors += [mutant.name] if failure is None else []
            print(f"{mutant.name:{width}}  {failure or 'SURVIVED'}  {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{len(chosen) - len(survivors)} caught, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
