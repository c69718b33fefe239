"""A look as one HTML file that needs no other one and asks no network: data as JSON, a style and a script.

    Look -> page_data (JSON) + page.html, page.css and page.js beside this file -> one string

Nothing of a request becomes markup: its words stand in the JSON, in which ``<``, ``>`` and ``&`` are escaped, and the script
writes them as text. A content security policy allows this script and this style by their hashes, and nothing else.

n explained tokens, T positions, L layers, H heads.

Test: ``pytest tests/analysis/test_page.py``
"""

import base64
import hashlib
import io
import json
import math
from pathlib import Path
from string import Template

import numpy as np
import torch

from .positions import tile_boxes

FOLDER = Path(__file__).resolve().parent
MAX_BYTES = 8_000_000
HEAD_NUMBERS = (1_500_000, 400_000, 0)  # of the maps of single heads; the next one is taken if a page gets too large
EXACT = 300_000  # arrays with more numbers are written as float16
SIDE, MEL_COLUMNS = 640, 500  # pixels of a picture's longer side, columns of a spectrogram
ABOUT = {
    "average": "the weights of all layers and heads, averaged; they tell where values were read, not what decided",
    "rollout": "attention averaged over heads and multiplied through the layers, half of it staying in place (Abnar and Zuidema 2020)",
    "relevance": "attention times its gradient, multiplied through the layers (Chefer et al. 2021)",
    "gradient": "the gradient of the token's log-odds times the input of the decoder; blue is against the token",
    "occlusion": "how much the token's log-probability falls when this place is covered and the model runs again; blue: it rises",
}


def page(look, layers=None):
    """The page of a `Look`; ``layers`` are those whose single heads it shows, None is as many as fit.

    Raises: ValueError for a layer that is not there, or if the page would be larger than `MAX_BYTES`.
    """
    count = len(look.attention)
    if layers is not None and not all(layer in range(count) for layer in layers):
        raise ValueError(f"layers must be numbers of 0 to {count - 1}, got {layers!r:.80}")
    style, script = ((FOLDER / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {digest(style)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Template((FOLDER / "page.html").read_text(encoding="utf-8"))
    choices = [head_layers(look, n) for n in HEAD_NUMBERS] if layers is None else [sorted(set(layers))]
    for chosen in choices:
        html = template.substitute(csp=policy, css=style, js=script, data=safe_json(page_data(look, chosen)))
        if len(html.encode()) <= MAX_BYTES:
            return html
    size = len(html.encode())
    raise ValueError(f"the page would have {size:,} bytes, more than {MAX_BYTES:,}: explain fewer tokens, or give fewer layers or media")


def digest(text):
    """The source expression of an inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def safe_json(value):
    """JSON that cannot end the script element it stands in. Lone surrogates stay escaped, NaN is refused."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def array(values, exact=True):
    """Numbers as ``{shape, type, base64}``: float32, or float16 if they need not be exact. Little-endian, rows first."""
    values = np.ascontiguousarray(values, "<f4" if exact else "<f2")
    data = base64.b64encode(values.tobytes()).decode()
    return {"shape": list(values.shape), "type": "f4" if exact else "f2", "base64": data}


def page_data(look, layers):
    """Everything that the page shows, as values for JSON; ``layers`` are those whose single heads are in it."""
    from .look import MAPS

    maps = {name: getattr(look, name) for name in MAPS}
    exact = look.attention[0].size * len(look.attention) <= EXACT
    measured = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    towers = [tower_data(look, each) for each in look.towers]
    tower_numbers = sum(each.weights.numel() for each in look.towers)
    skipped = len(look.attention) - len(layers)
    notes = [*look.notes, *([f"single heads of {skipped} layers were left out to keep the page small"] if skipped else [])]
    return {
        "question": look.question, "text": look.text, "model": look.model, "forced": look.forced, "notes": notes,
        "total_tokens": look.total_tokens, "cost": str(look.plan) if look.occlusion is not None else "",
        "tokens": [{"id": t.id, "text": t.text, "probability": t.probability, "logprob": t.logprob,
                    "top": [list(x) for x in t.top]} for t in look.tokens],
        "positions": [p.as_dict() for p in look.positions],
        "pictures": [picture_data(look, each) for each in look.pictures],
        "sounds": [sound_data(each) for each in look.sounds],
        "maps": {name: {"label": MAPS[name], "about": ABOUT[name], "values": array(values)}
                 for name, values in maps.items() if values is not None},
        "layer_attention": array(np.stack([layer.mean(1) for layer in look.attention]), exact),
        "attention_layers": layers, "attention": [array(look.attention[i], exact) for i in layers],
        "norms": array(look.norms), "attention_norms": array(look.attention_norms), "mlp_norms": array(look.mlp_norms),
        "head_norms": array(look.head_norms), "lens": array(look.lens), "lens_top": look.lens_top,
        "units": [] if look.falls is None else [{"label": u.label, "positions": list(u.positions)} for u in look.plan.units],
        "falls": None if look.falls is None else array(look.falls),
        "towers": [each | {"weights": array(each["weights"], tower_numbers <= EXACT)} for each in towers],
        "tower_note": tower_note(look), "road": look.road, "measured": measured, "trust": trust(measured),
    }  # fmt: skip


def head_layers(look, numbers):
    """The layers whose single heads are on the page: all, or as many as fit, evenly spread, with the last one."""
    count = min(len(look.attention), numbers // max(1, look.attention[0].size))
    if count == len(look.attention):
        return list(range(count))
    last = len(look.attention) - 1
    return sorted({round(last * (i + 1) / count) for i in range(count)})


def trust(measured):
    """What was measured about the maps, in one sentence."""
    spoken, shown = measured["spoken"]["shares"], measured["pictures"]["shares"]
    parts = [f"{name} {100 * shown[name]:.0f} % ({100 * spoken[name]:.0f} %)" for name in (*ABOUT, "best layer or head", "chance")]
    return (
        "How far to trust a map: on the demo weights, with three objects in the picture, its peak was inside the object that "
        f"was asked for (in a spoken question: on the word that decides): {', '.join(parts)}. With other weights it may differ."
    )


# ---- media


def picture_data(look, picture):
    """One picture as the model got it, without its thumbnail, as a data URL."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("a page with pictures needs Pillow: pip install Pillow") from None
    c, (columns, rows) = look.vision, picture.grid
    mean, std = (torch.tensor(x)[:, None, None] for x in (c.image_mean, c.image_std))
    tiles = picture.tiles[: columns * rows].float().cpu() * std + mean
    height, width = tiles.shape[2:]
    whole = tiles.view(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    image = Image.fromarray((whole * 255).round().clamp(0, 255).byte().numpy())
    wide, high = picture.size or image.size
    side = max(112, SIDE // math.isqrt(max(1, len(look.pictures))))
    scale = min(1.0, side / max(image.size))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    is_whole = picture.seconds is None  # a frame is cropped or padded to a square
    shape = (wide, high) if is_whole else image.size
    about = {"name": picture.name, "width": shape[0], "height": shape[1], "grid": [columns, rows], "image": url}
    about |= {"thumbnail": picture.thumbnail}
    return about | ({} if is_whole else {"seconds": picture.seconds})


def sound_data(sound):
    """One sound: envelope, spectrogram and times."""
    about = {"name": sound.name, "seconds": sound.seconds, "envelope": None, "mel": None, "frames_seconds": 1.0}
    if sound.envelope is not None:
        about["envelope"] = array(sound.envelope)
    if sound.rate is not None:
        parts = np.array_split(sound.bank.float().cpu().numpy(), min(MEL_COLUMNS, len(sound.bank)))
        mel = np.stack([part.mean(0) for part in parts])
        about |= {"mel": array(mel, exact=False), "frames_seconds": len(sound.bank) * 0.01 + 0.015}
    return about


def tower_data(look, each):
    """One map of a tower, with the picture and tile, or the sound, that it belongs to."""
    about = {"kind": each.kind, "layer": each.layer, "pooled": each.pooled, "weights": each.weights.float().numpy()}
    if each.kind == "audio":
        sounds = [i for i, sound in enumerate(look.sounds) if sound.rate is not None or len(look.sounds) == 1]
        number = sounds[each.number] if each.number < len(sounds) else each.number
        bank = look.sounds[number].bank
        return about | {"name": f"sound {number + 1}", "medium": number, "seconds": len(bank) * 0.01 + 0.015}
    owners = [(i, tile) for i, picture in enumerate(look.pictures) for tile in range(len(picture.tiles))]
    number, tile = owners[each.number]
    picture = look.pictures[number]
    is_last = picture.thumbnail and tile == len(picture.tiles) - 1
    part = ", thumbnail" if is_last else f", tile {tile + 1}" if len(picture.tiles) > 1 else ""
    box = list(tile_boxes(picture)[tile])
    return about | {"name": f"picture {number + 1}{part}", "medium": number, "box": box}


def tower_note(look):
    """What was left out of the towers' maps."""
    pooled = max((each.pooled for each in look.towers), default=1)
    layers = {kind: len({t.layer for t in look.towers if t.kind == kind}) for kind in ("image", "audio")}
    kept = ", ".join(f"{n} layers of the {'vision tower' if k == 'image' else 'audio encoder'}" for k, n in layers.items() if n)
    return f"{kept} are here" + (f"; {pooled} neighbours are one place." if pooled > 1 else ".")
