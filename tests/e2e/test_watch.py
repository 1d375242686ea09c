"""`grpo-tir watch` as a user runs it: a real server, a real browser, and a run directory that grows meanwhile."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import FLAGS, SET, Page, launch, size, synthetic
from grpo_tir.cli import main
from training_run import environment

HERE = [flag.replace("MAP * ~NOTFOUND", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") for flag in FLAGS]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps, of which the tests show more and more."""
    folder = tmp_path_factory.mktemp("whole")
    path: Path = synthetic().write_run(folder / "whole", name="run", steps=40, prompts=2, samples=8)
    return path


class Growing:
    """A run directory as a trainer would have left it after so many steps."""

    def __init__(self, whole: Path, path: Path) -> None:
        self.whole, self.path = whole, path
        self.lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
        (path / "rollouts").mkdir(parents=True)
        for name in ("config.yaml", "metadata.json"):
            shutil.copy(whole / name, path / name)

    def to(self, step: int, torn: str = "") -> None:
        for file in sorted((self.whole / "rollouts").iterdir())[:step]:
            if not (self.path / "rollouts" / file.name).exists():
                shutil.copy(file, self.path / "rollouts" / file.name)
        (self.path / "metrics.jsonl").write_text("".join(self.lines[:step]) + torn)


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Growing:
    return Growing(whole_run, tmp_path / "run")


class Watcher:
    """The command in a process of its own, and its port."""

    def __init__(self, *runs: Path) -> None:
        command = [sys.executable, "-m", "grpo_tir", "watch", *map(str, runs), "--port", "0"]
        self.process = subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE)
        assert self.process.stdout
        self.url = self.process.stdout.readline().split()[0]
        self.port = int(re.findall(r":(\d+)/", self.url)[0])

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def interrupt(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out


@pytest.fixture
def watcher(run: Growing) -> Iterator[Watcher]:
    watcher = Watcher(run.path)
    yield watcher
    watcher.process.kill()
    watcher.process.wait()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = launch(tmp_path_factory.mktemp("chromium"), HERE)
    size(driver, 1440, 900)
    yield driver
    driver.quit()


WHERE = """
const card = document.activeElement.closest('.sample'), fold = document.querySelector('#tables details');
return { top: Math.round(document.querySelector(".where").getBoundingClientRect().top), where: document.querySelector('.where').textContent,
  filter: document.querySelector('[data-filter][aria-checked="true"]').dataset.filter,
  cards: document.querySelector('.cards').scrollLeft, focus: card && card.getAttribute('aria-label'), fold: fold.open,
  mode: document.querySelector('[data-mode][aria-checked="true"]').dataset.mode,
  tokens: document.querySelectorAll('.token').length, selected: document.querySelector('[aria-selected="true"]').textContent,
  step: document.querySelector('#pick-step').value, window: document.querySelector('#window').value };
"""  # noqa: E501


def test_a_growing_run_is_followed_without_losing_the_reader_s_place(
    run: Growing, watcher: Watcher, chromium: Any
) -> None:
    run.to(20)
    page = Page(chromium, watcher.url)
    page.until("document.querySelector('#live').textContent === 'live · step 20'")
    found = page.text("#found")
    page.click("#tables details summary")
    page.js(f"{SET}('#window', 5)")
    page.click('[data-filter="recovered"]')
    page.until("document.querySelector('#found').textContent !== arguments[0]", found)
    page.click('[data-mode="logprobs"]')
    page.until("document.querySelectorAll('.token').length > 100")
    page.js("document.querySelectorAll('.sample')[5].focus(); window.scrollBy(0, 37)")
    page.until("document.activeElement.closest('.sample') !== null")
    before, bars = page.js(WHERE), page.count(".bar")

    run.to(40, torn='{"step": 41, "rew')  # the trainer is in the middle of a line
    page.until("document.querySelector('#live').textContent === 'live · step 40'")
    after = page.js(WHERE)
    assert abs(after.pop("top") - before.pop("top")) <= 2, "the line that was read has moved on the screen"
    assert after == before
    assert page.js("return view.last") == 40
    assert "left out" not in page.text("main"), "a line that is being written is no fault"
    assert "steps 1 to 40" in page.text("#map-words")
    assert page.count(".bar") > bars, "this problem has been drawn again meanwhile"
    assert page.count("#pick-step option") == 41
    page.press("j")
    page.until("document.querySelector('.where').textContent !== arguments[0]", before["where"])

    code, said = watcher.interrupt()
    assert (code, said) == (0, "stopped watching; the run goes on\n")
    page.until("document.querySelector('#live').textContent === 'grpo-tir watch has ended'")
    errors = [entry["message"] for entry in chromium.get_log("browser")]
    assert [message for message in errors if "ERR_CONNECTION" not in message] == []


def test_it_can_be_opened_before_the_first_step(run: Growing, watcher: Watcher, chromium: Any) -> None:
    chromium.get("about:blank")
    chromium.get(watcher.url)
    assert "Waiting for the first step" in chromium.page_source
    run.to(1)
    from selenium.webdriver.support.ui import WebDriverWait

    ready = "return document.documentElement.dataset.ready !== undefined"
    WebDriverWait(chromium, 30).until(lambda driver: driver.execute_script(ready))


def test_an_unchanged_run_is_not_sent_again(run: Growing, watcher: Watcher) -> None:
    run.to(2)
    status, body = watcher.get("/data")
    version = json.loads(body)["version"]
    assert status == 200 and set(json.loads(body)["chunks"]) > {"data", "g0"}
    assert watcher.get("/data", If_None_Match=version) == (304, b"")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("evil.example", 403),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("", 403),
    ],
)
def test_it_answers_to_this_machine_s_name_only(host: str, status: int, run: Growing, watcher: Watcher) -> None:
    run.to(1)
    assert watcher.get("/", Host=host.format(port=watcher.port))[0] == status


def test_it_serves_nothing_but_the_page(run: Growing, watcher: Watcher) -> None:
    run.to(1)
    for path in ("/metrics.jsonl", "/../metrics.jsonl", "/data/", "/%2e%2e/"):
        assert watcher.get(path)[0] == 404


def test_what_cannot_be_watched_is_one_line(
    tmp_path: Path, run: Growing, watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(tmp_path / "nowhere")]) == 2
    assert main(["watch", str(run.path), "--port", str(watcher.port)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "is not a run directory" in lines[0] and "choose another --port" in lines[1] and len(lines) == 2
