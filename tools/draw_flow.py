"""Draws how a picture becomes an answer, with the numbers of one real run: python tools/draw_flow.py

    weights/demo/example.jpg, the default prompt -> hooks on the modules -> tools/flow.svg

`observe` answers the request once and notes the shapes that go through public modules. `draw` writes them as an SVG by
hand. The picture has its own background and no outside font or file, so that it looks alike on every page.

Test: ``pytest tests/tools/test_draw_flow.py``
"""

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vita_ref import Vita

EXAMPLE, OUT = ROOT / "weights/demo/example.jpg", ROOT / "tools/flow.svg"
PROMPT = "Describe the image."  # the default for an image


@dataclass
class Run:
    """What one request showed. Shapes are lists of ints; ``rows`` says where the image stands in the prompt."""

    size: tuple  # of the file, in pixels
    thumbnail: torch.Tensor  # [Y, X, 3] uint8, the tile that the vision tower got
    tile: list
    patches: list
    tower: list
    features: list
    projected: list
    embeds: list  # of the first pass
    step: list  # of the second one
    rows: tuple
    logits: list
    text: list  # (id, piece) of each text token of the prompt
    top: list  # (piece, probability) of the likeliest first tokens
    cached: int
    new: list  # (id, piece) of each new token
    answer: str
    layers: tuple  # of the vision tower and the decoder


def observe(folder=ROOT / "weights/demo", image=EXAMPLE):
    """Answers the default request and returns a `Run`. Only inputs and outputs of modules are read."""
    vita = Vita.from_pretrained(folder, dtype=torch.float32, kernels="plain")  # the figure must not depend on the processor
    seen = {}

    def keep(name, module):
        """Notes the first call of a module; of the logits and the embedded ids, every call."""

        def hook(_, args, kwargs, output):
            seen.setdefault(name, []).append((args, kwargs, output))
            if name == "decoder":
                seen.setdefault("cached", []).append(kwargs["cache"].length)

        module.register_forward_hook(hook, with_kwargs=True)

    modules = [*vita.vision.modules()]
    keep("patches", next(m for m in modules if isinstance(m, nn.Conv2d)))
    keep("tower", next(m for m in modules if isinstance(m, nn.LayerNorm)))
    keep("vision", vita.vision)
    keep("projector", vita.projector)
    keep("embed", vita.decoder.embed_tokens)
    keep("decoder", vita.decoder)
    keep("logits", vita.decoder.lm_head)
    answer = vita.respond(PROMPT, images=[str(image)])

    pixels = seen["vision"][0][0][0]  # [1, 3, Y, X]
    projected = seen["projector"][0][2]  # [1, I, D]
    inputs = [args[0] if args else kwargs["inputs_embeds"] for args, kwargs, _ in seen["decoder"]]  # [1, S, D] each
    logits = [output.reshape(-1, output.shape[-1])[-1] for *_, output in seen["logits"]]  # [V] of each step
    top = logits[0].float().softmax(-1).topk(3)
    ids = [x.flatten().tolist() for (x,), *_ in seen["embed"]]

    def pieces(tokens):
        return [(i, vita.tokenizer.decode([i])) for i in tokens]

    return Run(
        size=Image.open(image).size,
        thumbnail=thumbnail(pixels, vita.config.vision),
        tile=list(pixels.shape),
        patches=list(seen["patches"][0][2].shape),
        tower=list(seen["tower"][0][0][0].shape),
        features=list(seen["vision"][0][2].shape),
        projected=list(projected.shape),
        embeds=list(inputs[0].shape),
        step=list(inputs[1].shape),
        rows=span(inputs[0][0], projected[0]),
        logits=[1, len(logits[0])],
        text=pieces(ids[0]),
        top=[(vita.tokenizer.decode([i]), p) for p, i in zip(top.values.tolist(), top.indices.tolist())],
        cached=seen["cached"][0],
        new=pieces(int(step.argmax()) for step in logits),
        answer=answer,
        layers=(vita.config.vision.num_hidden_layers, vita.config.decoder.num_hidden_layers),
    )


def span(rows, part):
    """(start, end) of ``part`` [I, D] in ``rows`` [S, D]."""
    starts = range(len(rows) - len(part) + 1)
    return next((i, i + len(part)) for i in starts if rows[i : i + len(part)].equal(part))


def thumbnail(pixels, config, cells=56):
    """The tile before it was normalised, as blocks of one colour: [1, 3, Y, X] -> [cells, cells, 3] uint8."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.image_mean, config.image_std))
    blocks = nn.functional.adaptive_avg_pool2d(pixels[0].float() * std + mean, cells)  # [3, cells, cells]
    return (blocks * 255).round().clamp(0, 255).byte().permute(1, 2, 0)


# ---- drawing: every function returns SVG text

TOP, WIDTH, HEIGHT = 16, 880, 556  # the first y, and the size
STYLE = """
text { font-family: -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; font-size: 13px; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.note { font-size: 12px; fill: #59636e }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12px }
.small { font-size: 10.5px }
.page { fill: #ffffff; stroke: #d1d9e0 }
.box { fill: #f6f8fa; stroke: #afb8c1 }
.layer { fill: #eaeef2; stroke: #afb8c1 }
.line { fill: none; stroke: #6e7781; stroke-width: 1.5 }
.head { fill: #6e7781 }
.image { fill: #ffd8a8; stroke: #e8850c }
.word { fill: #c5dcff; stroke: #2f6fde }
.fan { fill: #ffd8a8; opacity: 0.45 }
.thread { fill: none; stroke: #2f6fde; opacity: 0.6 }
.bus { fill: none; stroke: #e8850c; stroke-width: 1.5 }
.bushead { fill: #e8850c }
.bar { fill: #2f6fde }
.track { fill: #eaeef2 }
.gap { fill: none; stroke: #ffffff; stroke-width: 1.5 }
.wide { stroke-width: 4 }
"""
DARK = """
text { fill: #e6edf3 }
.note { fill: #9198a1 }
.page { fill: #0d1117; stroke: #3d444d }
.box { fill: #151b23; stroke: #545d68 }
.layer { fill: #212830; stroke: #545d68 }
.line { stroke: #9198a1 }
.head { fill: #9198a1 }
.image { fill: #6b3f08; stroke: #f0983a }
.word { fill: #1c3f7c; stroke: #6ea8ff }
.fan { fill: #6b3f08 }
.thread { stroke: #6ea8ff }
.bus { stroke: #f0983a }
.bushead { fill: #f0983a }
.bar { fill: #6ea8ff }
.track { fill: #212830 }
.gap { stroke: #0d1117 }
"""


def text(x, y, words, kind="", anchor="middle"):
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x, y, width, height, kind="box", radius=6):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" class="{kind}"/>'


def path(d, kind="line"):
    return f'<path d="{d}" class="{kind}"/>'


def arrow(points, kind="line", head="head"):
    """A line through points with a head at its end; the last piece is horizontal or vertical."""
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    line = " L".join(f"{a:g} {b:g}" for a, b in [*points[:-1], (x - 6 * dx, y - 6 * dy)])
    wing = f"{x - 8 * dx - 4 * dy:g} {y - 8 * dy - 4 * dx:g} L{x - 8 * dx + 4 * dy:g} {y - 8 * dy + 4 * dx:g}"
    return path(f"M{line}", kind) + path(f"M{x:g} {y:g} L{wing}Z", head)


def shape(sizes):
    return f"[{', '.join(map(str, sizes))}]"


def mosaic(pixels, step=20):
    """Blocks of one colour as runs, one path a colour; colours are rounded, so that runs are long."""
    rounded = (pixels.int() + step // 2) // step * step
    runs = {}
    for y, row in enumerate(rounded.tolist()):
        x = 0
        while x < len(row):
            end = next((i for i in range(x, len(row)) if row[i] != row[x]), len(row))
            runs.setdefault("#{:02x}{:02x}{:02x}".format(*(min(c, 255) for c in row[x])), []).append((x, y, end - x))
            x = end
    paths = [
        f'<path fill="{colour}" d="{"".join(f"M{x} {y}h{n}v1h-{n}z" for x, y, n in places)}"/>'
        for colour, places in runs.items()
    ]
    return f'<g id="picture" shape-rendering="crispEdges">{"".join(paths)}</g>'


def picture(x, y, edge, cells, groups=0, kind="gap"):
    """The tile at a place, cut into ``groups`` x ``groups`` pieces."""
    cuts = [x + edge * i / groups for i in range(1, groups)], [y + edge * i / groups for i in range(1, groups)]
    lines = "".join(f"M{a:g} {y:g}v{edge:g}" for a in cuts[0]) + "".join(f"M{x:g} {b:g}h{edge:g}" for b in cuts[1])
    tile = f'<use href="#picture" transform="translate({x:g} {y:g}) scale({edge / cells:.4f})"/>'
    return tile + (path(lines, kind) if groups else "")


def image_lane(run, layers):
    """File, tile, patches, vision tower, shuffle, projector: six columns."""
    cells, (_, width, rows, columns) = len(run.thumbnail), run.patches
    shuffled = round(run.features[1] ** 0.5)
    assert rows == columns and shuffled**2 == run.features[1] and run.tile[0] == 1, "drawn for one square tile"
    edge, top, pitch, half = 100, 62, 142, 85
    centres = [half + pitch * i for i in range(6)]
    patch = run.tile[2] // rows
    labels = [
        ("file", "example.jpg", f"{run.size[0]} x {run.size[1]} pixels"),
        ("tile", shape(run.tile), "resized, normalised"),
        ("patches", shape(run.patches), f"{rows} x {columns} of {patch} x {patch} pixels"),
        ("vision tower", shape(run.tower), f"{rows * columns} patches, 1 class token"),
        ("pixel shuffle", shape(run.features), f"{run.features[2] // width} patches side by side"),
        ("projector", shape(run.projected), "as wide as the decoder"),
    ]
    parts = []
    for x, (title, numbers, note) in zip(centres, labels):
        parts += [text(x, 46, title, "title"), text(x, top + edge + 20, numbers, "mono" if "[" in numbers else "")]
        parts += [text(x, top + edge + 37, note, "note small")]
    for x in centres[:-1]:
        parts.append(arrow([(x + 55, top + edge / 2), (x + pitch - 55, top + edge / 2)]))
    left = [x - edge / 2 for x in centres]
    parts += [picture(left[0], top, edge, cells), picture(left[1] + 14, top + 14, edge - 28, cells)]
    parts += [picture(left[2], top, edge, cells, columns), picture(left[4], top, edge, cells, shuffled, "gap wide")]
    for i in range(layers):
        height = (edge - 6 * (layers - 1)) / layers
        parts.append(box(left[3], top + i * (height + 6), edge, height, "layer", 4))
        parts.append(text(centres[3], top + i * (height + 6) + height / 2 + 4, f"layer {i}", "note small"))
    for i, name in enumerate(("Linear", "GELU", "Linear")):
        parts += [box(left[5], top + 36 * i, edge, 28, "layer", 4), text(centres[5], top + 36 * i + 18, name, "note")]
    return parts, (centres[5], top + edge + 44)


def prompt_lane(run, source):
    """The rows of the prompt in a strip, the projector's above and the text's below."""
    start, end = run.rows
    x0, y, pitch, cell = 24, 264, 24.5, 22
    middle = x0 + pitch * (start + end) / 2
    parts = [text(x0, y - 30, "splice", "title", "start")]
    parts.append(arrow([source, (source[0], y - 36), (middle, y - 36), (middle, y - 10)], "bus", "bushead"))
    brace = x0 + pitch * start, x0 + pitch * end - (pitch - cell)
    parts.append(path(f"M{brace[0]:g} {y - 4} v-5 H{brace[1]:g} v5", "bus"))
    parts.append(text(middle + 8, y - 15, f"{end - start} image rows", "note", "start"))
    for i in range(run.embeds[1]):
        inside = start <= i < end
        parts.append(box(x0 + pitch * i, y, cell, cell, "image" if inside else "word", 3))
        parts.append(text(x0 + pitch * i + cell / 2, y + 15, str(i), "small"))

    tokens = [*run.text[:start], (None, "<image>"), *run.text[start:]]
    widths = [7.3 * len(piece) + 12 for _, piece in tokens]
    lower, gap = y + 74, 5
    lefts = [x0 + sum(widths[:i]) + gap * i for i in range(len(tokens))]
    shift = x0 + pitch * run.embeds[1] - (lefts[-1] + widths[-1])  # what stands behind the image is set to the right
    lefts = [left + (shift if i > start else 0) for i, left in enumerate(lefts)]
    for i, ((token, piece), left, width) in enumerate(zip(tokens, lefts, widths)):
        centre = left + width / 2
        if token is None:
            fan = f"M{left:g} {lower} L{brace[0]:g} {y + cell + 4} H{brace[1]:g} L{left + width:g} {lower}Z"
            parts.append(path(fan, "fan"))
        else:
            column = i if i < start else i - 1 + end - start
            parts.append(path(f"M{centre:g} {lower} L{x0 + pitch * column + cell / 2:g} {y + cell + 2}", "thread"))
        parts.append(box(left, lower, width, 24, "image" if token is None else "word", 4))
        parts.append(text(centre, lower + 16, piece, "mono"))
        parts.append(text(centre, lower + 40, "placeholder" if token is None else str(token), "note small"))
    parts.append(text(x0, lower + 66, f"“{PROMPT}”", "", "start"))
    parts.append(text(x0, lower + 84, "The chat template and the tokenizer give the ids,", "note", "start"))
    rows = f"embed_tokens gives their rows: {shape([len(run.text), run.embeds[2]])}"
    parts.append(text(x0, lower + 101, rows, "note", "start"))
    return parts, (x0 + pitch * run.embeds[1] + 2, y + cell / 2)


def answer_lane(run, layers, source):
    """Decoder, logits and the new tokens; each of them is the next input."""
    x, y, width, height = 622, 246, 222, 128
    end = x + width
    parts = [arrow([source, (x - 2, source[1])])]
    parts += [box(x, y, width, height), text(x + 14, y + 22, "decoder", "title", "start")]
    parts.append(text(end - 14, y + 22, shape(run.embeds), "mono", "end"))
    step = (height - 62) / layers
    for i in range(layers):
        line = y + 32 + step * i
        parts.append(box(x + 14, line, width - 28, step - 3, "layer", 3))
        parts.append(text(x + width / 2, line + step / 2 + 2, f"layer {i}: attention, MLP", "note small"))
    parts.append(text(x + 14, y + height - 11, f"KV cache: {run.cached} positions", "note", "start"))
    parts.append(arrow([(x + width / 2, y + height), (x + width / 2, y + height + 24)]))

    top = y + height + 42
    parts += [text(x, top, "logits", "title", "start"), text(end, top, shape(run.logits), "mono", "end")]
    for i, (piece, probability) in enumerate(run.top):
        line = top + 23 + 20 * i
        parts.append(text(x + 46, line, piece, "mono", "end"))
        parts.append(box(x + 54, line - 10, 104, 12, "track", 2))
        parts.append(box(x + 54, line - 10, max(104 * probability, 1), 12, "bar", 2))
        parts.append(text(end, line, f"{100 * probability:.2f} %", "mono", "end"))

    bottom, low, left = top + 11 + 20 * len(run.top), 526, 24
    parts.append(text(left, low - 26, "answer", "title", "start"))
    parts.append(text(left + 66, low - 26, f"{len(run.new)} tokens, one pass of the decoder each", "note", "start"))
    parts.append(arrow([(x + 50, bottom), (x + 50, low - 16), (left + 9, low - 16), (left + 9, low - 1)]))
    parts.append(text(x + 42, low - 26, "the likeliest", "note", "end"))
    for i, (_, piece) in enumerate(run.new):
        wide = 7.3 * len(piece) + 11
        parts.append(box(left, low, wide, 24, "box" if i else "word", 4) + text(left + wide / 2, low + 16, piece, "mono"))
        left += wide + 4
    parts.append(arrow([(left, low + 12), (end + 18, low + 12), (end + 18, y + height / 2), (end + 2, y + height / 2)]))
    parts.append(text((left + end + 18) / 2, low + 5, f"the next input: {shape(run.step)}", "note"))
    return parts


def draw(run):
    """The figure as SVG text."""
    image, below = image_lane(run, run.layers[0])
    prompt, strip = prompt_lane(run, below)
    title = f"How {EXAMPLE.name} becomes the words: {run.answer}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {TOP} {WIDTH} {HEIGHT}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}@media (prefers-color-scheme: dark) {{{DARK}}}</style>",
            f"<defs>{mosaic(run.thumbnail)}</defs>",
            box(0.5, TOP + 0.5, WIDTH - 1, HEIGHT - 1, "page", 8),
            *image,
            *prompt,
            *answer_lane(run, run.layers[1], strip),
            "</svg>\n",
        ]
    )


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    svg = draw(observe())
    OUT.write_text(svg, encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {len(svg):,} bytes")


if __name__ == "__main__":
    main()
