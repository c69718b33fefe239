"""One token of an answer as an SVG figure, for a slide or a notebook: pictures, sounds and words coloured by one map.

Test: ``pytest tests/analysis/test_page.py``
"""

import math
from html import escape

import numpy as np

WIDTH, MARGIN, PICTURE = 640, 20, 280
TEXT = 'font-family="sans-serif" fill="#1f2328"'


class Figure:
    """The figure of token ``token`` (or "answer") and the map ``name``. ``.svg`` is its text; in a notebook it shows itself."""

    def __init__(self, look, token="answer", name="occlusion"):
        is_number = isinstance(token, (int, np.integer)) and not isinstance(token, bool)
        if token != "answer" and not (is_number and 0 <= token < len(look.tokens)):
            raise ValueError(f"token must be 0 to {len(look.tokens) - 1} or 'answer', got {token!r:.80}")
        self.look, self.values = look, look.map(name, token)
        self.title = f"“{shown(look.text.strip())[:60]}”"
        if token != "answer":
            chosen = look.tokens[token]
            self.title = f"“{shown(chosen.text)}” {100 * chosen.probability:.1f} %"
        self.name, self.parts, self.y = name, [], 64
        self.svg = self.draw()

    def save(self, path):
        """Writes the SVG file."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.svg)

    def _repr_svg_(self):
        return self.svg

    def _repr_html_(self):
        return self.svg

    def draw(self):
        from .look import MAPS
        from .page import picture_data

        for number, picture in enumerate(self.look.pictures[:4]):
            self.picture(number, picture_data(self.look, picture))
        for number, sound in enumerate(self.look.sounds[:4]):
            self.sound(number, sound)
        self.words()
        height = self.y + 40
        head = f'<text x="{MARGIN}" y="26" font-size="16" {TEXT}>{escape(self.title)}</text>'
        head += f'<text x="{MARGIN}" y="48" font-size="13" {TEXT}>{escape(MAPS[self.name])}</text>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" '
            f'role="img"><rect width="100%" height="100%" fill="white"/>{head}{"".join(self.parts)}</svg>'
        )

    def cell(self, position, most, x, y, width, height):
        """A coloured rectangle for one position, with its value as a title."""
        value = float(self.values[position.index])
        share = 0.0 if math.isnan(value) else min(1.0, abs(value) / most)
        colour = "#1e64dc" if value < 0 else "#e85d04"
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" fill-opacity="{0.85 * share:.3f}" '
            f'stroke="gray" stroke-width="0.5"><title>{escape(shown(position.text))}: {value:.3g}</title></rect>'
        )

    def strength(self, positions):
        """The largest size of a value, so that the strongest place has full colour."""
        values = np.abs([self.values[p.index] for p in positions] or [0.0])
        return max(1e-30, float(np.nan_to_num(values).max()))

    def picture(self, number, about):
        """A picture with its cells; the thumbnail's are left out."""
        ratio = min(4.0, max(1 / 6, about["height"] / about["width"]))  # limited: a picture may be one pixel wide
        height, last = PICTURE * ratio, about["grid"][0] * about["grid"][1]
        own = [p for p in self.look.positions if p.kind == "image" and p.medium == number and p.row is not None]
        box = f'x="{MARGIN}" y="{self.y:g}" width="{PICTURE}" height="{height:g}"'
        self.parts.append(f'<image href="{about["image"]}" {box} preserveAspectRatio="none"/>')
        most = self.strength(own)
        for p in own:
            if p.tile != last:
                left, top, right, bottom = p.box
                place = MARGIN + left * PICTURE, self.y + top * height
                self.cell(p, most, *place, (right - left) * PICTURE, (bottom - top) * height)
        self.y += height + 14

    def sound(self, number, sound):
        """The waveform over time with the positions."""
        own = [p for p in self.look.positions if p.kind == "audio" and p.medium == number and p.start is not None]
        end, width, middle = max((p.end for p in own), default=1.0), WIDTH - 2 * MARGIN, self.y + 30
        if sound.envelope is not None:
            scale, step = max(1e-9, float(np.abs(sound.envelope).max())), sound.seconds / end * width / len(sound.envelope)
            line = "".join(
                f"M{MARGIN + i * step:.1f} {middle - 28 * high / scale:.1f}V{middle + 0.5 - 28 * low / scale:.1f}"
                for i, (low, high) in enumerate(sound.envelope)
            )
            self.parts.append(f'<path d="{line}" stroke="gray" fill="none"/>')
        most = self.strength(own)
        for p in own:
            self.cell(p, most, MARGIN + p.start / end * width, self.y, (p.end - p.start) / end * width, 60)
        self.y += 74

    def words(self):
        """The text tokens in lines."""
        own, x = [p for p in self.look.positions if p.kind == "text"][:400], MARGIN
        most = self.strength(own)
        for p in own:
            text = shown(p.text)
            width = 8.2 * len(text) + 4
            if x + width > WIDTH - MARGIN:
                x, self.y = MARGIN, self.y + 26
            self.cell(p, most, x, self.y, width, 22)
            label = f'font-size="13" font-family="monospace" fill="#1f2328" xml:space="preserve">{escape(text)}</text>'
            self.parts.append(f'<text x="{x + 2:.1f}" y="{self.y + 16:g}" {label}')
            x += width


def shown(text):
    """A text on one line, without characters that XML has not."""
    return "".join(c if c.isprintable() else "␣" if c.isspace() else "�" for c in text)
