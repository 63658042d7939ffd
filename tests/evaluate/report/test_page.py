"""The report's page: what its style and structure promise to readers on phones, on dark screens, and without scripts."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import amd_plugin
from amd_plugin import get_plugin_manager, recipe
from amd_plugin.evaluate.colours import COLOURS
from amd_plugin.evaluate.comparison.result import Comparison, run_folder
from amd_plugin.evaluate.report import figures, page
from amd_plugin.evaluate.report.report import write_report
from amd_plugin.host import run
from amd_plugin.tasks import TASKS
from tests.helpers.recipes import TINY

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
LONG = "/a/folder/with/" + "x" * 300
LINES = [
    {"step": step, "objective/zone_share/low": 0.1, "objective/zone_share/high": 0.5 / step, "objective/zone_share/middle": float("nan")}
    for step in (1, 2, 3)
]  # fmt: skip
STYLE = re.search(
    r"<style>(.*?)</style>", (Path(amd_plugin.__file__).parent / "templates" / "report.html.j2").read_text(), re.DOTALL
).group(1)


@pytest.fixture(scope="module")
def rendered():
    """A page with every part, each of them wider than a phone."""
    table = {"metrics": [f"metric {i}" for i in range(12)], "rows": [(LONG, ["0.123 ± 0.045"] * 12)]}
    chart = figures.learning_curves({"amd": [LINES]}, {"objective/zone_share/low": "low"}, figures.colours(["amd"]))
    section = {
        "title": "t" * 200, "lead": LONG, "unfinished": LONG, "caveat": LONG, "pictures": [PIXEL], "samples_note": LONG,
        "prompts": [LONG], "tiles": [{key: LONG for key in ("metric", "direction", "difference", "base", "arm", "wins", "tuned")}],
        "judged": {"columns": [LONG, "b"], "rows": [{"prompt": LONG, "cells": [(PIXEL, True), (PIXEL, False)]}], "credits": LONG},
        "beside": [{"prompt": LONG, "teacher": PIXEL, "student": PIXEL}], "teacher": PIXEL, "over_time": [(step, {"dmd": PIXEL, "amd": PIXEL}) for step in (10, 20, 30)],
        "alarms": [LONG], "table": {**table, "pairs": table["rows"], "base": "dmd", "chosen": table["rows"], "against": LONG, "how": LONG},
        "cost": {**table, "base": "dmd"}, "spent": [(LONG, "0.5")], "commands": [LONG], "levels": figures.zone_over_time({"amd": [LINES], "dmd": [[]]}),
        **dict.fromkeys(("pairs", "curves", "rewards", "sensor", "zone", "signals", "weights"), chart),
    }  # fmt: skip
    return page.render([section, {**section, "over_time": []}])


@pytest.fixture(scope="module")
def pages(rendered, tmp_path_factory):
    """Name -> page: the one with every part, one of a run of videos, and one of a comparison, of runs as small as they get."""
    folder, plugins = tmp_path_factory.mktemp("pages"), get_plugin_manager()
    small = ("model.depth=1", "model.heads=1", "model.teacher.steps=2", "train.max_steps=2", "evaluate.samples=200")
    videos = recipe.load("moving_digits", plugins, (*TINY, *small, "train.evaluate_every=1"), "dmd")
    run.train(videos, plugins, folder / "videos")
    arms = {}
    for name in ("dmd", "amd"):
        points = recipe.load("modes2d", plugins, (*TINY, "train.evaluate_every=2"), name)
        values = run.train(points, plugins, run_folder(folder / "compared", name, 0))
        arms[name] = {metric: [value] for metric, value in values.items()}
    Comparison(
        task="modes2d", recipe="modes2d", seeds=[0], arms=arms, baseline="dmd", better=TASKS["modes2d"].metrics,
        held_out=points.config.evaluate.held_out, teacher=arms["dmd"], command="amd-plugin compare modes2d",
    ).write(folder / "compared")  # fmt: skip
    written = {name: write_report([folder / name], folder / f"{name}.html", plugins) for name in ("videos", "compared")}
    return {"every part": rendered} | {name: file.read_text() for name, file in written.items()}


class Structure(HTMLParser):
    """Every table and picture with the classes and tags that it is inside of."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.requests = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("table", "img"):
            self.found.append((tag, {name for one in self.open for name in one}))
        self.requests += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append({tag, *given.get("class", "").split()})

    def handle_endtag(self, tag):
        self.open.pop()


def rule(selector):
    """The declarations of a rule of the style, whose selector is `selector` to the letter."""
    return re.search(rf"(?:^|[}}\n]) *{re.escape(selector)} {{(.*?)}}", STYLE).group(1)


def test_whatever_may_be_wide_scrolls_inside_of_its_own_box(rendered):
    for container in ("figure", ".scroll", ".strip", "pre"):
        assert "overflow-x: auto" in rule(container)
    assert "max-width: 100%" in rule("figure img") and "overflow-wrap: anywhere" in rule("body")
    found = Structure(rendered).found
    assert len(found) > 20
    for tag, inside in found:
        assert inside & ({"scroll"} if tag == "table" else {"scroll", "figure"}), tag


def test_three_charts_of_a_section_are_open_and_the_rest_is_folded(pages):
    for name, text in pages.items():
        for section in text.split("<h2 id=")[1:]:
            unfolded = re.sub(r"<details>(?:(?!<details>).)*?</details>", "", section, flags=re.DOTALL)  # a chart's own numbers
            unfolded = re.sub(r"<details>.*?</details>", "", unfolded, flags=re.DOTALL)
            assert 1 <= unfolded.count('class="chart"') <= (4 if name == "every part" else 3), name  # of runs and comparisons


def test_every_metric_of_a_task_is_explained(rendered):
    terms = " ".join(re.findall(r"<dt>(.*?)</dt>", rendered))
    for task in TASKS.values():
        for metric in task.metrics:
            assert re.search(rf"\b{metric}\b", terms), metric


def test_the_page_asks_for_nothing_and_runs_its_own_script_only(rendered):
    assert all(value.startswith(("data:image/", "#")) for value in Structure(rendered).requests)
    (script,) = re.findall(r"<script>(.*?)</script>", rendered, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in rendered and "default-src &#39;none&#39;" in rendered
    assert "<script" not in page.render([{"title": "one", "table": {}}])


def test_without_the_script_all_pictures_over_time_are_a_list(rendered):
    strip = re.search(r'<div class="strip over-time">(.*?)\n  </div>', rendered, re.DOTALL).group(1)
    assert strip.count("<figure") == 4 and "hidden" not in strip and "dmd, amd after 20 student updates" in strip


def test_a_comparison_has_its_arms_side_by_side_over_time(pages):
    strip = re.search(r'<div class="strip over-time">(.*?)\n  </div>', pages["compared"], re.DOTALL).group(1)
    alts = [f"Samples of {arm} after {step} student updates" for step in (2, 4) for arm in ("dmd", "amd")]
    assert re.findall(r'alt="(.*?)"', strip) == ["Samples of the teacher", *alts]
    assert "One seed cannot tell an effect from chance" in pages["compared"]


def test_videos_move_in_the_page(pages):
    strip = re.search(r'<div class="strip over-time">(.*?)\n  </div>', pages["videos"], re.DOTALL).group(1)
    assert strip.count("data:image/gif;base64,") == 3, "the teacher, and two evaluations"
    assert pages["videos"].count("<img ") == pages["videos"].count(' alt="')


def rgb(colour):
    colour = colour.lstrip("#")
    colour = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    return [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def inverted(colour):
    """What ``filter: invert(1) hue-rotate(180deg)`` makes of a colour."""
    r, g, b = (1 - part for part in colour)
    turned = (-0.574 * r + 1.43 * g + 0.144 * b, 0.426 * r + 0.43 * g + 0.144 * b, 0.426 * r + 1.43 * g - 0.856 * b)
    return [min(max(part, 0.0), 1.0) for part in turned]


def contrast(one, other):
    """WCAG 2.2's contrast ratio, from 1 to 21."""
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour] for colour in (one, other)]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)


def themes():
    light, dark = (dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root {(.*?)}", STYLE))
    return {"light": light, "dark": dark}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_read_in_both_themes(theme):
    colours = {name: rgb(value) for name, value in themes()[theme].items()}
    for text in ("ink", "soft", "accent"):
        for ground in ("ground", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (theme, text, ground)
    code = re.findall(r"#\w+", rule("pre"))
    assert contrast(*map(rgb, code[:2])) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_of_charts_are_seen_in_both_themes(theme):
    card = rgb(themes()[theme]["card"])
    assert "invert(1) hue-rotate(180deg)" in STYLE
    for line in (*COLOURS, figures.SEED_LINES):
        colour = rgb(line) if theme == "light" else inverted(rgb(line))
        assert contrast(colour, card) >= 3, (theme, line)


def test_levels_of_the_zone_are_one_picture():
    steps, levels = figures._zone_shares([LINES, LINES[:2]])
    assert steps == [1, 2] and levels == {"low": [0.1, 0.1], "high": [0.5, 0.25]}
    rungs = [{"step": step, "objective/zone_share/rung 1": 0.5, "objective/zone_share/rung 0": 0.2} for step in (1, 2)]
    assert list(figures._zone_shares([rungs])[1]) == ["rung 0", "rung 1"]
    assert figures.zone_over_time({"dmd": [[{"step": 1}]], "new": [[]], "none": []}) is None


def test_charts_have_their_numbers():
    lines = [{"step": step, "evaluated_reward/r": step / 10, "held_out/tv": 1 / step} for step in range(1, 101)]
    palette, rewards, metrics = figures.colours(["dmd", "amd"]), {"evaluated_reward/r": "r"}, {"held_out/tv": "tv (↓)"}
    chart = figures.learning_curves({"amd": [lines, lines]}, metrics, palette)
    assert chart.head == ["student updates", "tv (↓)"]
    assert figures.learning_curves({"amd": [lines], "dmd": [[]]}, metrics, palette).rows[0] == ["1", "1", ""]
    assert figures.learning_curves({"amd": [lines[:1]]}, metrics, palette) is None, "a single dot is no curve"
    assert len(chart.rows) == figures.ROWS and chart.rows[0] == ["1", "1"] and chart.rows[-1] == ["100", "0.01"]
    chart = figures.quality_by_reward({"amd": [lines[:2]], "dmd": [lines[:3]]}, rewards, metrics, palette)
    assert chart.head == ["student updates", "r, amd", "tv (↓), amd", "r, dmd", "tv (↓), dmd"]
    assert chart.rows == [["1", "0.1", "1", "0.1", "1"], ["2", "0.2", "0.5", "0.2", "0.5"], ["3", "", "", "0.3", "0.3333"]]
    assert figures.quality_by_reward({"amd": [lines[:1]]}, rewards, metrics, palette) is None
    chart = figures.paired_seeds({"amd": {"tv": [1.0, 3.0]}, "dmd": {"tv": [2.0, 4.0]}}, {"tv": "tv"}, palette)
    assert chart.rows == [["1", "1", "2"], ["2", "3", "4"]]
    many = {f"metric {place}": f"metric {place}" for place in range(14)}
    chart = figures.paired_seeds({arm: {key: [1.0] for key in many} for arm in ("amd", "dmd")}, many, palette)
    svg = base64.b64decode(chart.picture.partition(",")[2]).decode()
    width, height = (float(re.search(rf' {side}="([\d.]+)pt"', svg).group(1)) for side in ("width", "height"))
    assert width < 800 and height > 700, "four in a row, as elsewhere: more cannot be read"


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser"))), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "captions"),
    [
        ("every part", ["dmd, amd after 30 student updates", "dmd, amd after 10 student updates"]),
        ("videos", ["dmd after 2 student updates", "dmd after 1 student update"]),
        ("compared", ["dmd, amd after 4 student updates", "dmd, amd after 2 student updates"]),
    ],
)
def test_a_browser_shows_it_on_a_phone_and_on_a_desk(pages, tmp_path, name, captions, theme):
    """Nothing is wider than the page, every picture is one, the slider shows one update, and the console stays silent."""
    look = """onload = () => { document.title = JSON.stringify([...document.querySelectorAll("iframe")].map((frame) => {
      const d = frame.contentDocument, e = d.documentElement, slider = d.querySelector("input[type=range]");
      const shown = () => [...d.querySelectorAll(".over-time .step")].filter((f) => f.offsetParent).map((f) => f.innerText.trim());
      const last = shown(), told = slider.getAttribute("aria-valuetext");
      slider.value = 0; slider.dispatchEvent(new Event("input"));
      return { room: frame.width - e.scrollWidth, captions: [...last, ...shown()], told: told,
        broken: [...d.images].filter((i) => !i.naturalWidth).map((i) => i.alt), ground: getComputedStyle(d.body).backgroundColor };
    })); }"""
    frames = [
        f'<iframe width="{width}" height="844" style="border:0" srcdoc="{html.escape(pages[name])}"></iframe>'
        for width in (390, 1280)
    ]
    file = tmp_path / "frames.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><script>{look}</script>{''.join(frames)}")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}",
        f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}",
    ]
    shown = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    ground = f"rgb{tuple(round(255 * part) for part in rgb(themes()[theme]['ground']))}"
    for found in json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout).group(1))):
        assert found["room"] >= 0 and found["broken"] == [] and found["ground"] == ground
        assert found["captions"] == captions and found["told"] == captions[0]
    assert "CONSOLE" not in shown.stderr, shown.stderr


def test_a_page_of_one_run_is_no_comparison():
    section = {"title": "digits", "table": {"metrics": [], "rows": []}}
    alone = page.render([section])
    assert "<h1>A few-step student</h1>" in alone and "<nav>" not in alone, "there is nowhere else to go"
    for sections in ([section, section], [{**section, "tiles": [{}]}]):
        assert "<h1>Few-step students, compared</h1>" in page.render(sections)
