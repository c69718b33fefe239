"""The command line: ``python -m vita_ref.generate --image x.jpg`` answers, and prints nothing else.

    flags -> Request -> Vita.inputs -> Vita.steps -> text as it becomes certain

Exit status 2 and one line on standard error for whatever the user can mend.

Test: ``pytest tests/test_generate.py``
"""

import argparse
import contextlib
import io
import json
import queue
import re
import sys
import threading
import time
import warnings
from pathlib import Path

import torch

from . import sampling
from .analysis import budget
from .files.tokenizer import StreamDecoder
from .model import Vita, until
from .prompt import split_state
from .request import Request, batch, fit, prepare
from .scale import parallel

GROUP = 8  # requests of a --batch file that run together


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"vita_ref: {message} (--help lists the flags)\n")


def parser():
    """The flags of the command line, with their defaults."""
    p = Parser(prog="python -m vita_ref.generate", description="Answers a question about pictures, sounds or a video.")
    p.add_argument("--model", metavar="DIR", help="checkpoint folder (default: the demo weights)")
    p.add_argument("--vision-dir", metavar="DIR", help="where a VITA-1.5 folder's vision config lies")
    p.add_argument("--audio-dir", metavar="DIR", help="where a VITA-1.5 folder's train.yaml lies")
    p.add_argument("--speech-dir", metavar="DIR", help="where the speech weights lie: decoder/ and codec/")
    p.add_argument("--prompt", metavar="TEXT", help="the question; may hold <image>, <audio> and <video>")
    p.add_argument("--image", metavar="PATH", action="append", default=[], help="a picture, or - for standard input")
    p.add_argument("--audio", metavar="PATH", action="append", default=[], help="a sound: wav, flac, ogg, mp3")
    p.add_argument("--video", metavar="PATH", help="a film, an animation, or a folder of frames")
    p.add_argument("--fps", type=float, default=1.0, help="frames of a video looked at in a second (default: 1)")
    p.add_argument("--max-frames", type=int, default=16, help="of a video looked at in all (default: 16)")
    p.add_argument("--system", metavar="TEXT", help="system prompt (default: the checkpoint's own)")
    p.add_argument("--system-file", metavar="PATH", help="the same from a file")
    p.add_argument("--raw", action="store_true", help="the prompt as it is, without the chat template")
    p.add_argument("--max-new-tokens", type=int, default=256, help="the longest answer (default: 256)")
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, the default")
    p.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest that make up this share (default: 1)")
    p.add_argument("--top-k", type=int, default=0, help="draw from so many of the likeliest; 0, the default: from all")
    p.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: what was said is less likely (default: 1)")
    p.add_argument("--seed", type=int, help="of the draws (default: another each time)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's")
    p.add_argument("--quantize", choices=["int8"], help="weight-only int8")
    p.add_argument("--pack", action="store_true", help="weights in the processor's order: for long prompts and --batch")
    p.add_argument("--no-mmap", action="store_true", help="copy the weights, so that their file may be overwritten")
    p.add_argument("--device", default="cpu", help="torch's name of it (default: cpu)")
    p.add_argument("--threads", type=int, help="of the processor (default: torch's choice)")
    p.add_argument("--max-tiles", type=int, help="tiles a picture is cut into at most; 1 turns tiling off")
    p.add_argument("--no-stream", action="store_true", help="print once at the end")
    p.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    p.add_argument("--batch", metavar="FILE", help="JSON lines, one request each; answers as JSON lines")
    p.add_argument("--top", type=int, default=0, metavar="N", help="with --json: the N likeliest first tokens")
    p.add_argument("--speak", metavar="OUT.wav", help="also speak the answer")
    p.add_argument("--speed", type=float, default=1.0, help="of speech, 0.5 to 2")
    p.add_argument("--dry-run", action="store_true", help="say what it would need, weights unread: memory, operations")
    p.add_argument("--ranks", type=int, metavar="N", help="with --dry-run: for each of N processes (default: WORLD_SIZE)")
    p.add_argument("--verbose", action="store_true", help="progress and timings even where nobody watches")
    return p


def demo_folder():
    """The weights that come with the project: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    places = [here / "weights" / "demo", here.parent / "weights" / "demo"]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ValueError(f"the demo weights are not there (looked in {places[0]} and {places[1]}); name a folder with --model")


def check(a):
    """Refuses flags that are out of range or do not go together.

    Raises: ValueError that names the flag.
    """
    least = {"fps": 1e-3, "max_frames": 1, "max_new_tokens": 1, "threads": 1, "max_tiles": 1, "top": 0, "ranks": 1}
    for name, low in least.items():
        value = getattr(a, name)
        if value is not None and not value >= low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    sampling.Sampling(None, a.temperature, a.top_p, a.top_k, a.repetition_penalty).check()
    if not 0.5 <= a.speed <= 2:
        raise ValueError(f"--speed must be between 0.5 and 2, got {a.speed}")
    if a.speak and not Path(a.speak).absolute().parent.is_dir():
        raise ValueError(f"--speak {a.speak}: its folder does not exist")
    if a.speak and Path(a.speak).is_dir():
        raise ValueError(f"--speak {a.speak}: this is a folder")
    if a.top and not (a.json or a.batch):
        raise ValueError("--top needs --json")
    if a.pack and a.quantize:
        raise ValueError("--pack and --quantize do not go together")
    if a.ranks and not a.dry_run:
        raise ValueError("--ranks needs --dry-run")
    if a.system is not None and a.system_file is not None:
        raise ValueError("--system and --system-file say the same thing; give one")
    if a.image.count("-") > 1:
        raise ValueError("standard input holds one picture; --image - may stand once")
    if a.batch and (a.prompt is not None or a.image or a.audio or a.video or a.speak):
        raise ValueError("--batch takes its requests from the file: leave out --prompt, --image, --audio, --video, --speak")
    if parallel.world() > 1 and (a.speak or "-" in a.image):
        raise ValueError("several processes share no speech and no standard input: leave out --speak and --image -")
    if a.device == "meta":
        raise ValueError("--device meta holds no numbers: --dry-run says what a request needs")
    try:
        torch.empty(0, device=a.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {a.device}: {str(error).splitlines()[0]}") from None


def read_text(path):
    """A text file's content. Raises: ValueError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def requests(a):
    """The requests that the flags or the --batch file describe, as `Request`."""
    system = a.system if a.system_file is None else read_text(a.system_file)
    common = {"system": system, "raw": a.raw, "max_tiles": a.max_tiles, "fps": a.fps, "max_frames": a.max_frames}
    if not a.batch:
        images = [io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path for path in a.image]
        return [Request(a.prompt, images, a.audio, a.video, **common)]
    found, folder = [], Path(a.batch).parent
    lines = [line for line in read_text(a.batch).split("\n") if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            found.append(Request(**batch_line(line, folder), **common))
        except ValueError as error:
            raise ValueError(f"{a.batch} request {number}: {error}") from None
    if not found:
        raise ValueError(f"{a.batch} holds no request")
    return found


def batch_line(line, folder):
    """The fields of one line of a --batch file, its paths made relative to the file's folder."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(raw, dict) or not set(raw) <= {"prompt", "images", "audios", "video"}:
        raise ValueError("expected an object with prompt, images, audios, video")
    for name, kind in (("prompt", str), ("video", str), ("images", list), ("audios", list)):
        if raw.get(name) is not None and not isinstance(raw[name], kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(raw[name]).__name__}")
    for name in ("images", "audios"):
        if not all(isinstance(path, str) for path in raw.get(name) or []):
            raise ValueError(f"{name} must be a list of paths, got {json.dumps(raw[name])}")
    paths = {name: [str(folder / path) for path in raw.get(name) or []] for name in ("images", "audios")}
    video = None if raw.get("video") is None else str(folder / raw["video"])
    return {"prompt": raw.get("prompt"), "video": video} | paths


def answer(vita, ready, a, listeners=()):
    """Answers prepared requests together: a list of the objects that --json prints.

    Each of ``listeners`` is called with every piece of the first one's text as soon as it is certain.
    """
    start = time.perf_counter()
    x = vita.inputs(**batch(ready))
    generator = None if a.seed is None else torch.Generator(vita.decoder.norm.weight.device).manual_seed(a.seed)
    steps = vita.steps(
        x,
        max_new_tokens=a.max_new_tokens,
        do_sample=a.temperature > 0,
        temperature=a.temperature,
        top_p=a.top_p,
        top_k=a.top_k,
        repetition_penalty=a.repetition_penalty,
        eos_token_ids=vita.stop_ids,
        generator=generator,
        seen=vita.seen([p.ids for p in ready], None, x.embeds) if a.repetition_penalty != 1.0 else None,
    )
    stream, written, first, begun = StreamDecoder(vita.tokenizer), [], None, ""
    for ids, logits in steps:
        if first is None:
            first, prefilled = logits, time.perf_counter()
        written.append(ids)
        piece = stream.push(vita.readable(until(ids[:1], vita.stop_ids)))
        if not begun:  # a state mark in front of the text is not printed
            piece = split_state(piece, vita.config.template)[1]
        begun = begun or piece.strip()
        for hear in listeners:
            hear(piece)
    rest, end = stream.flush(), time.perf_counter()
    for hear in listeners:
        hear(rest)
    timing = {
        "prefill_s": round(prefilled - start, 4),
        "decode_s": round(end - prefilled, 4),
        "tokens_per_s": round((len(written) - 1) / max(end - prefilled, 1e-9), 2),
    }
    rows = zip(torch.stack(written, 1), x.segments, first)
    return [result(vita, row, segments, scores, a.top) | {"timing": timing} for row, segments, scores in rows]


def result(vita, row, segments, scores, top):
    """What --json prints of one row, but for the timing. Shapes: row [G] long, scores [V], the first step's logits."""
    ids = until(row, vita.stop_ids)
    state, text = split_state(vita.text(ids), vita.config.template)
    counts = {f"{kind}_tokens": sum(b - c for k, c, b in segments if k == kind) for kind in ("text", "image", "audio")}
    found = {
        "text": text,
        "token_ids": ids,
        "finish_reason": "stop" if len(ids) < len(row) else "length",
        "prompt": counts | {"total": sum(counts.values())},
        "state": state,
    }
    if top:
        likely = scores.float().softmax(-1).topk(min(top, len(scores)))
        pairs = zip(likely.values.tolist(), likely.indices.tolist())
        found["top"] = [{"token_id": i, "token": vita.text([i], False), "probability": p} for p, i in pairs]
    return found


def run(a):
    """Loads, answers and prints. Raises: ValueError for what the user can mend."""
    talk = a.verbose or sys.stderr.isatty()
    with parallel.agreed():
        check(a)
        if a.threads:
            torch.set_num_threads(a.threads)
        asked, start = requests(a), time.perf_counter()
        vita = Vita.from_pretrained(
            a.model or demo_folder(),
            dtype=None if a.dtype is None else getattr(torch, a.dtype),
            device=a.device,
            quantize=a.quantize,
            vision_dir=a.vision_dir,
            audio_dir=a.audio_dir,
            speech_dir=a.speech_dir,
            split=parallel.world() > 1,
            pack=a.pack,
            mmap=not a.no_mmap,
            progress=loading_bar() if talk else None,
        )
        loaded = time.perf_counter() - start
        ready = prepared(asked, vita, a)
    plain = not (a.json or a.batch)
    with torch.inference_mode():
        for i in range(0, len(ready), GROUP):
            stream = plain and not a.no_stream
            with speaking(vita, a) as say:
                listeners = [show] * stream + [say] * (say is not None)
                results = answer(vita, ready[i : i + GROUP], a, listeners)
            for found in results:
                found["timing"] = {"load_s": round(loaded, 4)} | found["timing"]
                if plain:
                    print("" if stream else found["text"], flush=True)
                else:
                    print(json.dumps(found, ensure_ascii=False), flush=True)
                if talk:
                    times = ", ".join(f"{k} {v}" for k, v in found["timing"].items())
                    print(f"{times}, {found['prompt']['total']} positions", file=sys.stderr)


def dry_run(a):
    """Says what the requests would need, from config, tokenizer and media alone."""
    check(a)
    vita, disk = budget.meta_model(
        a.model or demo_folder(), vision_dir=a.vision_dir, audio_dir=a.audio_dir, speech_dir=a.speech_dir
    )
    ready, ranks = prepared(requests(a), vita, a), a.ranks or parallel.world()
    options = {"dtype": getattr(torch, a.dtype or vita.config.dtype), "quantize": a.quantize, "speech": vita.speech}
    options |= {"pack": a.pack, "max_new_tokens": a.max_new_tokens, "group": GROUP}
    found = {"disk": disk, "missing": vita.config.missing, "ranks": ranks, "each_rank": None}
    found |= budget.estimate(vita.config, ready, **options)
    if ranks > 1:
        found["each_rank"] = budget.estimate(budget.rank_config(vita.config, ranks), ready, **options)
    print(json.dumps(found, ensure_ascii=False) if a.json else budget.format_table(found))


def prepared(asked, vita, a):
    """Requests made ready, the errors of a --batch file's saying which of them they are about."""
    ready = []
    for number, request in enumerate(asked, 1):
        try:
            ready.append(prepare(request, vita.config, vita.tokenizer))
            if not a.dry_run:  # which tells how much is too much
                fit(vita.config, ready[-1])
        except ValueError as error:
            raise ValueError(f"{a.batch} request {number}: {error}" if a.batch else str(error)) from None
    return ready


def show(text):
    """A piece of the answer, at once."""
    print(text, end="", flush=True)


@contextlib.contextmanager
def speaking(vita, a):
    """Gives a function that takes the answer's text as it comes and speaks it into --speak's file meanwhile.

    The file appears when it is whole. None where nothing is to be spoken.
    """
    if not a.speak:
        yield None
        return
    try:
        import soundfile
    except ImportError:
        raise ValueError("--speak needs soundfile: pip install soundfile") from None
    texts, failed = queue.SimpleQueue(), []
    pieces = vita.speak_stream(iter(texts.get, None), speed=a.speed)
    target, part = Path(a.speak), Path(f"{a.speak}.part")

    def work():
        try:
            with soundfile.SoundFile(part, "w", vita.speech.sample_rate, 1, format="WAV") as out, torch.inference_mode():
                for piece in pieces:
                    out.write(piece.cpu().numpy())
        except (ValueError, OSError, soundfile.SoundFileError) as error:
            failed.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    complete = False
    try:
        yield texts.put
        complete = True
    finally:
        texts.put(None)
        worker.join()
        if failed or not complete:
            part.unlink(missing_ok=True)
    if failed:
        raise ValueError(f"--speak {a.speak}: {failed[0]}")
    try:
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"--speak {a.speak}: {error}") from None


def loading_bar():
    """A progress bar on standard error for loads of more than a second, where tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar = tqdm(unit=" tensors", delay=1.0, leave=False, file=sys.stderr)

    def progress(done, total):
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


@parallel.first_speaks()
def main(argv=None):
    """Entry point; gives the exit status."""
    arguments = parser().parse_args(argv)
    if not arguments.verbose:
        warnings.simplefilter("ignore")  # libraries' remarks about odd files
    try:
        if arguments.dry_run:
            dry_run(arguments)
            return 0
        with parallel.joined(arguments.device) as arguments.device:
            run(arguments)
    except BrokenPipeError:
        return 0
    except (ValueError, OSError) as error:
        print(f"vita_ref: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not re.search("allocate memory|out of memory", str(error)):
            raise
        print("vita_ref: there is not enough memory: --dry-run says what a request needs", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
