"""The figures of the documentation: drawn by their script as they are committed, and shown with words for who cannot see them."""

import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image, ImageColor

from amd_plugin.evaluate.report.figures import inline
from tests.helpers import documentation
from tests.helpers.documentation import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def script():
    return documentation.script("docs/draw_figures.py")


@pytest.fixture(scope="module")
def drawn(script, tmp_path_factory):
    return script.draw(tmp_path_factory.mktemp("figures"))


def texts(file):
    return ["".join(element.itertext()) for element in ElementTree.parse(file).iter() if element.tag.endswith("text")]


def test_the_script_draws_the_committed_figures(drawn):
    """Their words, titles with numbers included; curves may differ in the last digit from machine to machine."""
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    for file in drawn:
        committed = ROOT / "docs" / "images" / file.name
        assert texts(file) == texts(committed) and len(texts(file)) > 3, "python docs/draw_figures.py"
        assert committed.stat().st_size < 250_000 and f"(images/{file.name})" in page


def test_the_tradeoffs_are_those_of_the_committed_results(tmp_path):
    drawn = documentation.script("docs/draw_tradeoffs.py").draw(tmp_path)
    assert texts(drawn) == texts(ROOT / "docs" / "images" / drawn.name), "python docs/draw_tradeoffs.py"


def test_a_figure_is_the_same_file_every_time(script, drawn, tmp_path):
    script.FIGURES = {name: script.FIGURES[name] for name in ("adaptation",)}
    for file in script.draw(tmp_path):
        assert file.read_bytes() == next(one for one in drawn if one.name == file.name).read_bytes()


def test_adaptive_samples_leave_the_zone_and_plain_ones_keep_the_teachers_masses(drawn):
    title = "".join(texts(next(file for file in drawn if file.stem == "forbidden_zone")))
    plain, adaptive = (int(share) for share in re.findall(r"(\d+)% of the samples", title))
    assert abs(plain - 30) <= 5 and adaptive < plain / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pictures_of_the_pages_exist_and_are_described(page):
    pictures = re.findall(r"!\[(.*?)\]\(([^)\s]+)\)", page.read_text(), re.DOTALL)
    pictures += [(re.search(r'alt="(.*?)"', tag, re.DOTALL).group(1), re.search(r'src="(.*?)"', tag).group(1))
                 for tag in re.findall(r"<img [^>]*>", page.read_text())]  # fmt: skip
    for words, source in pictures:
        assert len(words.split()) >= 3, source
        assert source.startswith("https://") or (page.parent / source).is_file(), source


def test_the_picture_of_students_frames_what_the_judge_finds_right(tmp_path):
    file = io.BytesIO()
    Image.fromarray(torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()).save(file, "png")
    rows = [{"prompt": f"{place} keys", "cells": [(inline(file.getvalue(), "png"), place > 0)] * 2} for place in range(4)]
    draw_students = documentation.script("docs/draw_students.py")
    draw_students.draw({"columns": ["DMD", "AMD"], "rows": rows}, {"DMD": 0.75, "AMD": 0.746}, tmp_path / "students.png")
    with Image.open(tmp_path / "students.png") as image:
        assert image.text["Description"] == "DMD 75%, AMD 75%"
        pixels = image.convert("RGB").getcolors(image.width * image.height)
    colours = {colour: count for count, colour in pixels}
    red, green = (ImageColor.getrgb(colour) for colour in (draw_students.RED, draw_students.GREEN))
    assert 2 < colours[green] / colours[red] < 4
