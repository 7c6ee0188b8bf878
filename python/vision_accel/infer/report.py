# SPDX-License-Identifier: Apache-2.0
"""Results to look at: a self-contained HTML page, and one picture with all images and their labels."""

import base64
import io
import math
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont

from vision_accel.infer._output import replacing
from vision_accel.infer.classify import Classification

# HTML ---------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --card: #fff; --page: #f3f4f6; --ink: #1f2328; --dim: #6b7280;
        --bar: #2f6fde; --rest: #a9b4c4; --track: #e7eaef; --bad: #c4322b; }
@media (prefers-color-scheme: dark) {
  :root { --card: #1c2128; --page: #0f1318; --ink: #e6e9ee; --dim: #98a2b0; --bar: #6ea0f5;
          --rest: #596575; --track: #2c333d; --bad: #ff8178; } }
* { box-sizing: border-box; }
body { display: flex; flex-direction: column; margin: 0 auto; max-width: 1280px; padding: 24px;
       background: var(--page); color: var(--ink);
       font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header { order: -1; }
h1 { font-size: 20px; margin: 0; }
header p { margin: 4px 0 20px; color: var(--dim); }
main { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 10px; overflow: hidden;
         box-shadow: 0 1px 3px #0002; display: flex; flex-direction: column; }
figure .picture { height: 180px; display: grid; place-items: center; background: var(--track); }
figure img { max-width: 100%; height: 180px; object-fit: contain; }
img.small { image-rendering: pixelated; }
figcaption { padding: 10px 12px 12px; }
.name { color: var(--dim); font-size: 12px; overflow: hidden; text-overflow: ellipsis;
        white-space: nowrap; direction: rtl; text-align: left; margin-bottom: 6px; }
.row { display: grid; grid-template-columns: 1fr auto; column-gap: 8px; margin-top: 4px; }
.row span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row b { font-weight: 500; font-variant-numeric: tabular-nums; }
.name + .row span { font-weight: 600; }
.track { grid-column: 1 / 3; height: 5px; border-radius: 3px; background: var(--track); }
.track i { display: block; height: 100%; border-radius: 3px; background: var(--rest); }
.name + .row .track i { background: var(--bar); }
.bad { color: var(--bad); overflow-wrap: anywhere; }
"""


class HtmlReport:
    """A page with every picture, its labels and scores as bars, in one file that needs no network.

    Results are added one at a time and written at once, so their number is not limited by memory::

        with HtmlReport("report.html", title="Classification") as report:
            for result in iter_classify(model, "photos", thumbnail=320):
                report.add(result)
    """

    def __init__(self, path: str | Path, title: str) -> None:
        self._title = escape(title)
        self._replacing = replacing(path)
        self._count = self._bad = 0

    def __enter__(self) -> "HtmlReport":
        self._file = self._replacing.__enter__()
        self._write(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{self._title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        )
        return self

    def add(self, result: Classification) -> None:
        """Append one result."""
        self._write(_card(result))
        self._count += 1
        self._bad += result.error is not None

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            summary = f"{self._count} image{'s' * (self._count != 1)}"
            summary += f", {self._bad} could not be read" * bool(self._bad)
            # The counts are known last; the style sheet moves them to the top.
            self._write(
                f"</main>\n<header><h1>{self._title}</h1><p>{summary}</p></header>\n</body>\n</html>\n"
            )
        return self._replacing.__exit__(*error)

    def _write(self, text: str) -> None:
        self._file.write(text.encode())


def _card(result: Classification) -> str:
    name, label = escape(result.source), escape(result.label)
    picture = ""
    if result.thumbnail is not None:
        data = base64.b64encode(_jpeg(result.thumbnail)).decode()
        sharp = ' class="small"' if max(result.thumbnail.size) < 100 else ""
        picture = f'<img{sharp} loading="lazy" alt="{label}" src="data:image/jpeg;base64,{data}">'
    if result.error is not None:
        rows = f'<div class="bad">{escape(result.error)}</div>'
    else:
        rows = "".join(
            f'<div class="row"><span>{escape(label)}</span><b>{score_text(score)}</b>'
            f'<div class="track"><i style="width:{100 * bar(result, score):.1f}%"></i></div></div>'
            for label, score in result.predictions
        )
    return (
        f'<figure><div class="picture">{picture}</div><figcaption>'
        f'<div class="name" title="{name}"><bdi>{name}</bdi></div>{rows}</figcaption></figure>\n'
    )


def _jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=88)
    return data.getvalue()


def score_text(score: float) -> str:
    """``97.3 %`` for a probability, ``12.41`` for a logit."""
    return f"{100 * score:.1f} %" if 0 <= score <= 1 else f"{score:.2f}"


def bar(result: Classification, score: float) -> float:
    """Length of a score's bar in [0, 1]; logits are shown relative to the best one of the picture."""
    if 0 <= result.score <= 1:
        return min(max(score, 0.0), 1.0)
    return math.exp(score - result.score)


# One picture --------------------------------------------------------------------------------------------

_PAGE, _CARD, _INK, _DIM, _TRACK = "#f3f4f6", "#ffffff", "#1f2328", "#6b7280", "#e7eaef"
_BAR, _REST, _GOOD, _BAD = "#2f6fde", "#a9b4c4", "#1a8f4c", "#c4322b"


def draw_grid(
    results: Sequence[Classification],
    title: str = "",
    *,
    expected: Sequence[str] | None = None,
    columns: int | None = None,
    labels: int = 3,
    size: int = 200,
) -> Image.Image:
    """One picture of all ``results``: each image with its best ``labels`` and their scores as bars.

    With ``expected``, the true label of each, mistakes are framed in red and say what was expected.

    Args:
        results: with thumbnails, as ``iter_classify(..., thumbnail=size)`` gives them.
        title: one line above.
        expected: true labels, one per result.
        columns: images per row; None: a page somewhat wider than high.
        labels: how many labels to show below each image.
        size: pixels of each image's square.
    """
    columns = columns or max(1, min(len(results), math.ceil(math.sqrt(1.6 * len(results)))))
    rows = math.ceil(len(results) / columns)
    shown = max([1, *(min(labels, len(r.predictions)) for r in results)])
    unit = max(11, size // 13)  # text size; everything else follows it
    gap, pad, line = unit, unit // 2, round(unit * 1.9)
    tall = size + 2 * pad + round(unit * 1.6) + shown * line
    head = round(unit * 3.2) if title else gap
    page = Image.new("RGB", (gap + columns * (size + 2 * pad + gap), head + rows * (tall + gap)), _PAGE)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((gap, head / 2), title, _INK, _font(round(unit * 1.35), True), anchor="lm")
    for i, result in enumerate(results):
        x = gap + i % columns * (size + 2 * pad + gap)
        y = head + i // columns * (tall + gap)
        truth = None if expected is None else expected[i]
        _draw_card(page, draw, (x, y), (size, pad, unit, line, tall), result, truth, shown)
    return page


def _draw_card(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    layout: tuple[int, int, int, int, int],
    result: Classification,
    truth: str | None,
    shown: int,
) -> None:
    x, y = corner
    size, pad, unit, line, tall = layout
    wrong = truth is not None and result.label != truth
    draw.rounded_rectangle(
        (x, y, x + size + 2 * pad, y + tall), unit // 2, _CARD, _BAD if wrong else None, 3 if wrong else 0
    )
    x, y = x + pad, y + pad
    draw.rectangle((x, y, x + size - 1, y + size - 1), _TRACK)
    if result.thumbnail is not None:
        picture = _fit(result.thumbnail, size)
        page.paste(picture, (x + (size - picture.width) // 2, y + (size - picture.height) // 2))
    y += size + round(unit * 0.8)
    small = _font(round(unit * 0.85))
    note, ink = (f"{result.label}, should be {truth}", _BAD) if wrong else (Path(result.source).name, _DIM)
    draw.text((x, y), _shorten(note, small, size), ink, small, anchor="lm")
    y += round(unit * 0.8)
    if result.error is not None:
        for text in _wrap(result.error, small, size, shown + 1):
            draw.text((x, y + line * 0.35), text, _BAD, small, anchor="lm")
            y += round(unit * 1.2)
    for rank, (label, score) in enumerate(result.predictions[:shown]):
        font = _font(unit, rank == 0)
        value = score_text(score)
        room = size - round(font.getlength(value)) - unit // 2
        draw.text((x, y + line * 0.4), _shorten(label, font, room), _INK, font, anchor="lm")
        draw.text((x + size, y + line * 0.4), value, _INK if rank == 0 else _DIM, font, anchor="rm")
        track = (x, y + line * 0.78, x + size - 1, y + line * 0.78 + max(3, unit // 4))
        draw.rounded_rectangle(track, 2, _TRACK)
        length = round((size - 1) * bar(result, score))
        if length >= 2:
            color = (_BAR if truth is None else _BAD if wrong else _GOOD) if rank == 0 else _REST
            draw.rounded_rectangle((x, track[1], x + length, track[3]), 2, color)
        y += line


def _fit(picture: Image.Image, size: int) -> Image.Image:
    """Scaled to fit; tiny images grow by whole factors so that their pixels stay square."""
    scale = size / max(picture.size)
    if scale >= 2:
        factor = int(scale)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(shape, Image.Resampling.LANCZOS)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    done: list[str] = []
    for word in text.split():
        if done and font.getlength(f"{done[-1]} {word}") <= width:
            done[-1] += f" {word}"
        elif len(done) < lines:
            done.append(word)
        else:
            done[-1] += "…"
            break
    return [_shorten(text, font, width) for text in done]


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings and which has most alphabets; else Pillow's own font."""
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        file = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if file.exists():
            return ImageFont.truetype(file, size)
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
