"""`grpo-tir eval` as users run it: killed, stopped, repeated, in other batches, on the paper's benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_tir import cli
from grpo_tir.data.benchmarks import PINS
from grpo_tir.testing import byte_tokenizer
from grpo_tir.utils.files import read_jsonl
from grpo_tir.utils.resources import recipes_dir
from made_benchmarks import write_benchmarks
from tiny_policy import tiny_qwen2
from training_run import BOXES, CALLS, environment, finish, wait_for

SAID = "28"
"""What the model of seed 0 boxes nearly always."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random models that happen to write programs and boxes, problems that one of them solves by luck."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = byte_tokenizer([*CALLS, *BOXES])
    for seed in (0, 3):
        model = tiny_qwen2(
            seed, len(tokenizer) + 7, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096
        )
        model.save_pretrained(folder / f"model{seed}")
        tokenizer.save_pretrained(folder / f"model{seed}")
    rows = [{"problem": f"What is {i} + {i}?" * (1 + i % 7), "answer": (SAID, "1/2")[i % 2]} for i in range(24)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "rollout": {"max_completion_length": 20},
        "tool": {"max_tool_calls": 2},
        "executor": {"kind": "process", "slots": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Evaluate and return results.json without its times and its command."""
    monkeypatch.chdir(folder)

    def evaluate(*arguments: str, out: str) -> dict[str, Any]:
        command = ["eval", *arguments, "--recipe", "recipe.yaml", "--out", out]
        monkeypatch.setattr(sys, "argv", ["grpo-tir", *command])
        assert cli.main(command) == 0
        return result_of(folder / out)

    return evaluate


def result_of(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert result.pop("times") and result.pop("command")
    return result


def scores(result: dict[str, Any]) -> list[Any]:
    return [cell["results"] for cell in result["cells"]]


def test_the_table_of_the_five_benchmarks_end_to_end(
    run: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every problem of five benchmarks, here of made problems, is sampled and graded."""
    write_benchmarks(tmp_path, monkeypatch)
    arguments = ["model0", "--bench", ",".join(PINS), "--bench-dir", str(tmp_path)]
    short = ["--rollout.max_completion_length", "4", "--tool.max_tool_calls", "1", "--compare", "paper"]
    result = run(*arguments, *short, out="five")
    (cell,) = result["cells"]
    rows = {name: found["problems"] for name, found in cell["results"].items()}
    assert rows == {"aime24": 3, "aime25": 2, "math500": 5, "olympiadbench": 4, "amc23": 1}
    assert all(about["pinned"] for about in result["benchmarks"].values())
    said = capsys.readouterr().out
    assert "paper: ToRL-7B" in said and "62.1 ✗ (56.1)" in said
    assert json.loads(said.splitlines()[-1])["out"] == "five"
    page = (folder / "five" / "results.md").read_text()
    assert "62.1 ✗ (56.1)" in page and "## Named" in page
    assert (
        "{problem}" in cell["prompt"]
        and cell["max_completion_length"] == 4
        and "transformers" in result["versions"]
    )


def test_a_second_greedy_run_gives_the_same_file(run: Callable[..., dict[str, Any]]) -> None:
    arguments = ["model0", "model3", "--data", "sums.jsonl", "--tool", "both", "--batch", "5"]
    first = run(*arguments, out="first")
    assert run(*arguments, out="second") == first
    right = first["cells"][0]["results"]["sums"]["score"]
    assert 0.3 < right < 0.6, "some right and some wrong, or there is nothing to compare"
    assert first["cells"][2]["results"]["sums"]["calls_mean"] > 0, "and some that call their tool"
    pairs = {(pair["second"], pair["first"]): pair for pair in first["differences"]}
    assert len(pairs) == 6  # of four cells
    pair = pairs["model3 (torl, c=2)", "model0 (torl, c=2)"]
    assert pair["mean"] == pytest.approx(first["cells"][2]["results"]["sums"]["score"] - right)


@pytest.mark.parametrize("drawn", [[], ["--samples", "2"]], ids=["greedy", "sampled"])
def test_no_response_depends_on_its_batch(drawn: list[str], run: Callable[..., dict[str, Any]]) -> None:
    arguments = ["model3", "--data", "sums.jsonl", "--float64", *drawn]
    alone = run(*arguments, "--batch", "1", out=f"alone{len(drawn)}")
    together = run(*arguments, "--batch", "32", out=f"together{len(drawn)}")
    assert scores(alone) == scores(together)
    texts = [
        {(row["problem_id"], row["sample"]): row["segments"] for row in read_jsonl(Path(out, "responses-0.jsonl"))}
        for out in (f"alone{len(drawn)}", f"together{len(drawn)}")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 24 * max(1, len(drawn))
    if drawn:
        (cell,) = together["cells"]
        found = cell["results"]["sums"]
        assert found["pass_at"]["2"] >= found["pass_at"]["1"] == pytest.approx(found["score"])


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "grpo_tir",
        "eval",
        "model0",
        "model3",
        "--data",
        "sums.jsonl",
        "--batch",
        "2",
    ]
    return subprocess.Popen(
        [*command, "--recipe", "recipe.yaml", "--rollout.max_completion_length", "150", "--out", out],
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def lines(folder: Path, out: str) -> int:
    path = folder / out / "responses-0.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_stopped_and_killed_it_goes_on_to_the_same_result(folder: Path) -> None:
    """SIGTERM in the middle of the first model, SIGKILL in the middle of the second."""
    whole = start(folder, "whole")
    code, out, err = finish(whole)
    assert code == 0, out + err

    process = start(folder, "torn")
    wait_for(lambda: lines(folder, "torn") >= 4, process)
    os.kill(process.pid, signal.SIGTERM)
    code, out, err = finish(process, timeout=60)
    assert code == 143 and "Traceback" not in err and "the same command goes on" in out, out + err
    stopped = lines(folder, "torn")
    assert 4 <= stopped < 48 and not (folder / "torn" / "results.json").exists()

    process = start(folder, "torn")
    wait_for(lambda: lines(folder, "torn") >= 30, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert lines(folder, "torn") < 48, "it was killed too late"

    code, out, err = finish(start(folder, "torn"))
    assert code == 0, out + err
    assert "finished responses" in out
    assert result_of(folder / "torn") == result_of(folder / "whole")
    assert lines(folder, "torn") == 48, "nothing was made twice"


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(folder: Path) -> None:
    """Every rank makes its share of the same waves, with tampered outputs as well."""
    launch = ("-m", "accelerate.commands.launch", "--config_file", str(recipes_dir() / "accelerate" / "cpu.yaml"))
    for out, launcher in (("one", ()), ("two", launch)):
        command = [sys.executable, *launcher, "-m", "grpo_tir", "eval", "model3", "--data", "sums.jsonl"]
        command += ["--tool-benefit", "--batch", "3", "--recipe", "recipe.yaml", "--out", out]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    results = [result_of(folder / out) for out in ("one", "two")]
    assert results[0] == results[1]
    assert {path.name for path in (folder / "two").glob("responses-*")} == {
        "responses-0.jsonl",
        "responses-1.jsonl",
    }


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--bench", "aime26"], "no benchmark `aime26`; known: aime24"),
        ([], "nothing to evaluate on: name --bench"),
        (["--data", "sums.jsonl", "--tool", "maybe"], "--tool maybe: it is one of with, without, both"),
        (["--data", "sums.jsonl", "--template", "base,tir"], "--template names 2 for 1 models"),
        (["--data", "sums.jsonl", "--template", "bse"], "`bse` is neither a template"),
        (["--data", "sums.jsonl", "--template", "tir"], "needs a tokenizer with a chat template"),
        (["--data", "sums.jsonl", "--tool.max_tool_calls", "0", "--tool-benefit"], "allows no calls"),
        (["--data", "sums.jsonl", "--samples", "0"], "must be 1 or more"),
        (["--data", "sums.jsonl", "--data", "sums.jsonl"], "have the same name"),
        (["--data", "nowhere.jsonl"], "there is no such file"),
        (["--data", "sums.jsonl", "--rollout.max_completion_length", "9999"], "4096 positions"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    arguments: list[str],
    says: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["eval", "model0", "--recipe", "recipe.yaml", "--out", "bad", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo-tir: ")]
    assert says in line
