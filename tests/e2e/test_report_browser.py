"""The report in a real browser with the network off: headless Chromium, the page opened from disk."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import FLAGS, SET, Page, launch, size, synthetic
from grpo_tir.report.page import write_report
from paper.page import write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run = synthetic().write_run
    a = write_run(folder / "a", name="quickstart c = 1", steps=60, prompts=2, samples=16)
    b = write_run(folder / "b", name="control c = 0", steps=60, prompts=2, samples=16, tool_calls=0, seed=1)
    return write_report([a, b], folder / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = launch(tmp_path_factory.mktemp("chromium"), FLAGS)
    yield driver
    driver.quit()


CARD = "[...document.querySelectorAll('.sample')].find((card) => card.textContent.includes(arguments[0]))"


def luminance(css: str) -> float:
    """Relative luminance of `rgb(…)`, as WCAG 2 defines it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", css)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture
def opened(chromium: Any, page: Path) -> Page:
    size(chromium, 1440, 1000)
    return Page(chromium, page.as_uri())


def test_it_loads_without_errors_or_any_network_request(chromium: Any, page: Path) -> None:
    for log in ("browser", "performance"):
        chromium.get_log(log)  # what earlier tests left
    Page(chromium, page.as_uri())
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked and {url for url in asked if not url.startswith(("about:", "blob:"))} == {page.as_uri()}


def test_the_papers_figures_are_drawn_for_both_runs(opened: Page) -> None:
    titles = opened.js("return [...document.querySelectorAll('figure h4')].map((h) => h.textContent)")
    wanted = ["Accuracy", "Reward", "Code ratio", "Pass ratio", "Executed ratio", "Code before answer"]
    wanted += ["Calls per response", "Response length", "Entropy", "Cut off", "Time per step"]
    assert set(wanted) <= set(titles)
    assert "Failed calls by error · quickstart c = 1" in titles
    heights = opened.js(
        "return [...document.querySelectorAll('figure svg')].map((svg) => "
        "Math.max(...[...svg.querySelectorAll('path')].map((path) => path.getBBox().height)))"
    )
    assert len(heights) == len(titles) and min(heights) > 1
    assert "NaN" not in opened.js("return document.querySelector('#charts').innerHTML")


def test_the_readout_gives_the_recorded_value_at_the_cursor(opened: Page, page: Path) -> None:
    line = json.loads((page.parent / "a" / "metrics.jsonl").read_text().splitlines()[0])
    entropy = "[...document.querySelectorAll('figure')].find((f) => f.textContent.startsWith('Entropy'))"
    opened.js(f"{SET}('#window', 1); {entropy}.querySelector('svg').focus()")
    opened.press("\ue011")  # Home
    opened.until("document.querySelector('text.now')?.textContent === 'step 1'")
    legend = opened.js(f"return {entropy}.querySelector('.legend b').textContent")
    assert legend == f"{line['entropy']:.3f} nats"


def test_a_run_can_be_hidden_from_the_figures(opened: Page) -> None:
    before = opened.count("path.mean")
    opened.click("button.run")
    assert 0 < opened.count("path.mean") < before


@pytest.mark.parametrize(
    ("kind", "mark"),
    [("recovered", "Recovered error"), ("fake", "Made-up output"), ("contradiction", "Contradicts its tool")],
)
def test_a_filter_leaves_only_matches_and_brings_one_into_view(opened: Page, kind: str, mark: str) -> None:
    everything = opened.text("#found")
    opened.click(f'[data-filter="{kind}"]')
    opened.until("document.querySelector('#found').textContent !== arguments[0]", everything)
    opened.until("document.querySelector('.cards')?.textContent.includes(arguments[0])", mark)
    rows = opened.js(
        "return [...document.querySelectorAll('.item')].map((item) => item.querySelectorAll('.hit').length)"
    )
    assert rows and min(rows) >= 1
    inside = opened.js(
        f"const card = {CARD}, [a, b] = [card, card.parentNode].map((node) => node.getBoundingClientRect());"
        "return a.left >= b.left - 2 && a.left < b.right",
        mark,
    )
    assert inside


def test_a_trajectory_shows_text_code_output_reward_and_advantage(opened: Page) -> None:
    opened.click('[data-filter="recovered"]')
    opened.until("document.querySelector('.cards')?.textContent.includes('Recovered error')")
    assert opened.count(".sample") == 16
    card = opened.js(f"return {CARD}.innerText", "Recovered error")
    for part in ("NameError: name 'bb' is not defined", "# the second factor", "reward", "advantage", "\\boxed{"):
        assert part in card
    statuses = opened.js(
        f"return [...{CARD}.querySelectorAll('.status')].map((s) => s.textContent)", "Recovered error"
    )
    assert statuses == ["error", "ok"]


@pytest.mark.parametrize(
    ("mode", "says"), [("logprobs", "log-prob"), ("ratios", "ratio"), ("advantage", "advantage")]
)
def test_tokens_are_coloured_on_demand(opened: Page, mode: str, says: str) -> None:
    assert opened.count(".token") == 0
    opened.click(f'[data-mode="{mode}"]')
    opened.until("document.querySelectorAll('.token').length > 100")
    assert opened.js("return document.querySelector('.token').title").startswith(says)
    shades = opened.js(
        "return new Set([...document.querySelectorAll('.token')].map("
        "(token) => getComputedStyle(token).backgroundColor)).size"
    )
    assert shades > 1
    assert opened.count(".tool .token") == 0


def test_the_same_problem_can_be_followed_across_training(opened: Page) -> None:
    opened.until("document.querySelectorAll('.bar').length > 2")
    problem, where = opened.text(".question"), opened.text(".where")
    opened.click(".bar:last-child")
    opened.until("document.querySelector('.where').textContent !== arguments[0]", where)
    assert opened.text(".question") == problem


def test_step_and_problem_can_be_picked(opened: Page) -> None:
    opened.js(f"{SET}('#pick-step', 1)")
    opened.until("[...document.querySelectorAll('.item b')].every((b) => b.textContent === 'step 1')")
    named = "return [...document.querySelectorAll('.item .of-run')].map((span) => span.textContent)"
    assert set(opened.js(named)) == {"quickstart c = 1", "control c = 0"}
    opened.js(f"{SET}('#pick-query', '13 times')")
    opened.until("document.querySelector('.question')?.textContent === 'What is 13 times 27?'")
    opened.js(f"{SET}('#pick-query', 'no such problem')")
    opened.until("document.querySelector('#detail').textContent === 'No group matches these filters.'")


def test_everything_is_reached_by_the_keyboard(opened: Page) -> None:
    opened.js("document.querySelector('#list').focus({ preventScroll: true })")
    first = opened.text(".where")
    opened.press("\ue015")  # arrow down
    opened.until("document.querySelector('.where').textContent !== arguments[0]", first)
    opened.press("k")
    opened.until("document.querySelector('.where').textContent === arguments[0]", first)
    opened.press("\ue007", "\ue014")  # Enter, arrow right
    focused = "document.activeElement.getAttribute('aria-label')"
    assert opened.js(f"return {focused}").startswith("Sample 1,")
    opened.press("2")
    opened.until("document.querySelectorAll('.token').length > 100")
    opened.until(f"{focused}?.startsWith('Sample 1,')")
    opened.press("f", "\ue014")  # to the filters, one to the right
    opened.until("document.querySelector('[data-filter=\"recovered\"]').getAttribute('aria-checked') === 'true'")
    opened.press("/", "1", "9")
    assert opened.js("return document.activeElement.id + document.activeElement.value") == "pick-query19"
    reach = "return [...document.querySelectorAll('button,a,input,select,summary')].every((e) => e.tabIndex >= 0)"
    assert opened.js(reach)


def test_hostile_output_is_only_ever_text(opened: Page) -> None:
    opened.js(f"{SET}('#pick-query', 'What is 13')")
    opened.until("document.querySelector('.cards')?.textContent.includes('<img src=x')")
    assert opened.js("return window.hacked === undefined")
    assert opened.count("main img, main script") == 0
    shown = opened.js("return document.querySelector('.cards').textContent")
    assert "</script><script>window.hacked=1</script>" in shown
    assert "⟨0000⟩⟨202e⟩gnirts\ufffd end" in shown  # NUL, right-to-left override, lone surrogate


@pytest.mark.parametrize("width", [360, 820, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_and_text_is_readable(chromium: Any, page: Path, width: int, dark: bool) -> None:
    size(chromium, width, 900, dark=dark)
    opened = Page(chromium, page.as_uri())
    opened.until("document.querySelector('.sample') !== null")
    root = "document.documentElement"
    assert opened.js(f"return [{root}.scrollWidth <= {root}.clientWidth, innerWidth]") == [True, width]
    named = ["figcaption h4", "figcaption p", ".legend b", ".sample pre", ".verdict", ".tile .facts", ".sample dt"]
    colour = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    back = luminance(opened.js(colour, ".card", "backgroundColor"))
    contrast = {}
    for name in named:
        dim, bright = sorted([back, luminance(opened.js(colour, name, "color"))])
        contrast[name] = (bright + 0.05) / (dim + 0.05)
    assert {name: ratio for name, ratio in contrast.items() if ratio < 4.5} == {}  # WCAG AA


def test_the_theme_can_be_chosen_against_the_system(opened: Page) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = opened.js(ground)
    opened.click("#theme")
    opened.click("#theme")
    assert opened.text("#theme") == "Dark"
    assert opened.js(ground) != light
    opened.click("#theme")
    assert opened.js(ground) == light


def test_a_link_opens_its_trajectory(chromium: Any, page: Path) -> None:
    opened = Page(chromium, f"{page.as_uri()}#trace=1.60.118")
    opened.until("document.querySelector('.where') !== null")
    assert opened.text(".where").startswith("control c = 0 · mul-22 · step 60")


@pytest.mark.parametrize(
    ("metrics", "rollouts", "says"),
    [
        ('{"step": 1, "reward": 0.5, "tools/code_ratio": null}\n', False, "no trajectories to browse"),
        ("", True, "no figures to draw"),
        ('{"step": 1, "reward": NaN}\n{"step": 2, "rew', False, "no figures to draw"),
    ],
)
def test_a_meagre_run_still_gives_a_page(
    chromium: Any, tmp_path: Path, metrics: str, rollouts: bool, says: str
) -> None:
    folder = synthetic().write_run(tmp_path / "run", name="meagre", steps=1, prompts=1, samples=2)
    (folder / "metrics.jsonl").write_text(metrics)
    if not rollouts:
        shutil.rmtree(folder / "rollouts")
    chromium.get_log("browser")
    opened = Page(chromium, write_report([folder], tmp_path / "report.html").as_uri())
    assert says in opened.text("main")
    assert chromium.get_log("browser") == []


def test_a_single_evaluation_is_shown_as_one_value(chromium: Any, tmp_path: Path) -> None:
    runs = [synthetic().write_run(tmp_path / name, name=name, steps=2, prompts=1, samples=2) for name in "ab"]
    for run, last in zip(runs, ("", '{"step": 1, "eval/accuracy": 0.75}\n')):
        (run / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.25}\n' + last)
    opened = Page(chromium, write_report(runs, tmp_path / "report.html").as_uri())
    shown = opened.js("return [...document.querySelectorAll('.tile .big')].map((p) => p.textContent)")
    assert shown == ["25.0%", "25.0% → 75.0%"]
    assert "25.0% → 25.0%" not in opened.text("main")


def test_findings_open_their_responses_and_fit_a_phone(chromium: Any, tmp_path: Path) -> None:
    synthetic().write_run(tmp_path / "runs/c1", name="c1", steps=2, prompts=1, samples=2)
    example = {
        "title": "A repaired error",
        "problem": "?",
        "responses": [{"who": "c = 2", "text": "<b>x</b> " * 99}],
    }
    line = {"statement": "two beat one", "paper": "+2", "ran": "c = 2.", "verdict": "reproduced", "bound": 0.0}
    line |= {"value": 0.5, "interval": [0.4, 0.6], "first": 0.9, "second": 0.4, "is_ratio": False}
    found = {"title": "Again", "rule": "r", "runs": ["runs/c1"], "findings": [{**line, "examples": [example]}]}
    (tmp_path / "findings.json").write_text(json.dumps(found))
    size(chromium, 390, 800)
    chromium.get_log("browser")
    opened = Page(chromium, write_page([tmp_path], tmp_path / "report.html").as_uri())
    visible = "return document.querySelector('#findings').innerText"
    assert "<b>x</b>" not in opened.js(visible)
    opened.js("document.querySelector('#findings summary').click()")
    assert "<b>x</b>" in opened.js(visible), "markup of a model is shown as text"
    assert opened.js("return document.documentElement.scrollWidth") <= 390
    assert chromium.get_log("browser") == []
