"""Measure the time to write the report and to open it in headless Chromium: 50,000 rollouts, 2,000 in full.

    python benchmarks/report.py [--words 500]

Times in milliseconds: by the page's clock from the start of navigation until figures and a trajectory are drawn
(ready) and until the last byte is parsed; the same by an outside clock, driver included (wall); then for applying
a filter and for opening another trajectory. A page of 1,000 rollouts is measured for comparison. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from grpo_tir.report.page import write_report

E2E = Path(__file__).resolve().parents[1] / "tests" / "e2e"

MEASURE = """
const done = arguments[arguments.length - 1];
const drawn = () => new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
const timed = async (act) => {
  const from = performance.now();
  await act();
  await drawn();
  return performance.now() - from;
};
(async () => {
  const filter = await timed(() => change("filter", "recovered"));
  const open = await timed(() => select(browse.shown.length - 1));
  const whole = traces.chunk.filter((chunk) => chunk >= 0).length;
  done({ filter, open, rows: traces.step.length, whole });
})();
"""


def open_page(page: Path) -> dict[str, float]:
    """Return the times in milliseconds, measured in a new browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    from browser import FLAGS

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            start = time.perf_counter()
            driver.get(page.as_uri())  # returns when the page is parsed completely
            while (ready := driver.execute_script("return document.documentElement.dataset.ready")) is None:
                time.sleep(0.005)
            wall = (time.perf_counter() - start) * 1000
            parsed = driver.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
            return {"ready": float(ready), "parsed": parsed, "wall": wall, **driver.execute_async_script(MEASURE)}
        finally:
            driver.quit()


def main() -> None:
    """Write two pages, open each three times in turns, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--words", type=int, default=500, help="of prose in each response (default: %(default)s)")
    arguments = parser.parse_args()
    sys.path[:0] = [str(E2E), str(E2E.parent)]
    from synthetic_run import write_run

    with tempfile.TemporaryDirectory() as folder:
        pages, writing = {}, {}
        for name, steps in (("small", 1000 // 128 + 1), ("large", 50_000 // 128)):
            run = write_run(Path(folder) / name, name=name, steps=steps, prompts=8, words=arguments.words)
            start = time.perf_counter()
            pages[name] = write_report([run], Path(folder) / f"{name}.html")
            writing[name] = time.perf_counter() - start
        opened: dict[str, list[dict[str, float]]] = {name: [] for name in pages}
        for _ in range(3):
            for name, page in pages.items():
                opened[name].append(open_page(page))
        report(pages, writing, opened)


def report(pages: dict[str, Path], writing: dict[str, float], opened: dict[str, list[dict[str, float]]]) -> None:
    """Print a table of medians, then the JSON line."""
    result: dict[str, dict[str, float]] = {}
    columns = ["rows", "whole", "megabytes", "write_seconds", "ready", "parsed", "wall", "filter", "open"]
    print(f"{'page':8}" + "".join(f"{column:>15}" for column in columns))
    for name, runs in opened.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        size = pages[name].stat().st_size / 1e6
        result[name] = {"megabytes": round(size, 1), "write_seconds": round(writing[name], 1), **middle}
        print(f"{name:8}" + "".join(f"{result[name][column]:15.1f}" for column in columns))
    ratio = result["large"]["ready"] / result["small"]["ready"]
    print(json.dumps({"benchmark": "report", **result, "ready_ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
