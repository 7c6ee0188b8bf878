# SPDX-License-Identifier: Apache-2.0
import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vision_accel.infer import Classification, HtmlReport, Prediction, draw_grid, replacing
from vision_accel.infer.report import bar

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the page shows and refers to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
        self.links += [attrs[a] for a in ("src", "href") if a in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def result(i, size=(40, 20)):
    pixels = np.full((size[1], size[0], 3), i * 9 % 256, np.uint8)
    scores = [Prediction(f"label <{i}> & co", 0.9), Prediction("Straße", 0.1)]
    return Classification(f"dir/<{i}>.jpg", scores, thumbnail=Image.fromarray(pixels))


def test_html_is_complete_and_self_contained(tmp_path):
    path = tmp_path / "report.html"
    with HtmlReport(path, "A <title>") as report:
        for i in range(5):
            report.add(result(i))
        report.add(Classification("bad.jpg", error="bad.jpg: truncated <here>"))
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(page.text)
    for piece in ("A <title>", "label <3> & co", "dir/<4>.jpg", "90.0 %", "bad.jpg: truncated <here>"):
        assert piece in text
    assert "6 images, 1 could not be read" in text
    assert len(page.images) == 5
    for source in page.links:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (40, 20)


def test_html_appears_only_when_complete(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")

    def stop_half_way():
        with HtmlReport(path, "t") as report:
            report.add(result(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_place_is_named_at_once(tmp_path):
    with pytest.raises(OSError, match=r"none/report\.html"), replacing(tmp_path / "none/report.html"):
        raise AssertionError("not reached")
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        raise AssertionError("not reached")


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_grid_shows_every_picture(count):
    results = [result(i, size=(200, 200)) for i in range(count)]
    page = np.asarray(draw_grid(results, "title")).reshape(-1, 3)
    for i in range(count):
        # Pictures are of one grey each, and fill a square of 200 pixels.
        assert (page == i * 9 % 256).all(1).sum() >= 200 * 200


def test_grid_marks_mistakes():
    results = [result(i) for i in range(3)]
    right = ["label <0> & co", "label <1> & co", "label <2> & co"]
    red = np.array([0xC4, 0x32, 0x2B])

    def reds(expected):
        return (np.asarray(draw_grid(results, expected=expected)) == red).all(2).sum()

    assert reds(right) == 0
    assert reds([*right[:2], "other"]) > 500


def test_grid_of_bad_and_empty_results():
    draw_grid([], "nothing")
    long = "a_very_long_word" * 9
    page = draw_grid([Classification(long, error=f"cannot read {long} " * 9), result(1)], long)
    assert page.width < 1000


def test_logits_have_bars_too():
    logits = Classification("a", [Prediction("x", 12.5), Prediction("y", 11.5), Prediction("z", -3.0)])
    draw_grid([logits])
    lengths = [bar(logits, p.score) for p in logits.predictions]
    assert lengths == pytest.approx([1, np.exp(-1), 0], abs=1e-6)
