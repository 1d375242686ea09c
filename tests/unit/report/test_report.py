"""The report as a file: what it keeps of a run, and that nothing in a run can break it or get out of it."""

from __future__ import annotations

import argparse
import base64
import gzip
import importlib.util
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.commands import report as report_command
from grpo_tir.errors import UserError
from grpo_tir.report import page as report
from grpo_tir.report import read, traces
from grpo_tir.report.read import read_run, read_runs
from grpo_tir.report.serve import Watched
from grpo_tir.report.traces import FLAGS, Traces, bisected, bits, full_rollout, spread_files


def write_synthetic(path: Path, **options: Any) -> Path:
    """The generator of the browser test, loaded by path: tests are not a package."""
    file = Path(__file__).parents[2] / "e2e" / "synthetic_run.py"
    spec = importlib.util.spec_from_file_location("synthetic_run", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: Path = module.write_run(path, name=options.pop("name", path.name), **options)
    return written


def chunks(page: str) -> dict[str, Any]:
    """Everything embedded, by id, decoded as the page decodes it."""
    found = re.findall(r'<script type="text/plain" id="(\w+)">([A-Za-z0-9+/=]*)</script>', page)
    return {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in found}


def make_run(path: Path, *metrics: str, rollouts: list[dict[str, Any]] | None = None) -> Path:
    path.mkdir(parents=True)
    if metrics:
        (path / "metrics.jsonl").write_text("".join(metrics))
    if rollouts is not None:
        (path / "rollouts").mkdir()
        (path / "rollouts" / "step_000001.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rollouts))
    return path


def rollout(
    *segments: tuple[str, str], calls: tuple[str, ...] = (), stdout: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "step": 1,
        "segments": [{"kind": kind, "text": text, "token_ids": [0] * 3} for kind, text in segments],
        "calls": [{"status": status, "stdout": stdout, "stderr": "", "seconds": 0.1} for status in calls],
        "reward_parts": {"correct": 1.0},
        **more,
    }


def flags(line: dict[str, Any]) -> set[str]:
    return {flag for i, flag in enumerate(FLAGS) if bits(line) & (1 << i)}


CODE = "```python\nprint(42)\n```\n```output"


def test_page_embeds_the_metrics_of_all_runs(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", '{"step": 1, "reward": -1.0}\n{"step": 2, "reward": 0.5}\n')
    b = make_run(tmp_path / "b", '{"step": 1, "reward": -0.25}\n')
    out = report.write_report([a, b], tmp_path / "page.html")
    data = chunks(out.read_text())["data"]
    assert [run["name"] for run in data["runs"]] == ["a", "b"]
    assert data["runs"][0]["metrics"] == {"reward": [-1.0, 0.5]}
    assert data["runs"][1]["steps"] == [1]


def test_command_prints_the_path_and_writes_beside_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", '{"step": 1, "reward": 0}\n')
    parser = argparse.ArgumentParser()
    report_command.add_arguments(parser)
    assert report_command.run(parser.parse_args([str(folder)])) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").is_file()


def test_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run", steps=4, samples=4)
    first = report.write_report([folder], tmp_path / "1.html", title="t").read_bytes()
    assert first == report.write_report([folder], tmp_path / "2.html", title="t").read_bytes()


def test_what_the_console_rang_for_is_on_the_page(tmp_path: Path) -> None:
    lines = [{"step": n, "loss": 0.0, "completions/clipped_ratio": 0.8 if n < 4 else 0.0} for n in range(1, 12)]
    folder = make_run(tmp_path / "r", "".join(json.dumps(line) + "\n" for line in lines))
    ((first, last, text),) = chunks(report.build_page([read_run(folder)]))["data"]["runs"][0]["alarms"]
    assert (first, last) == (1, 4)  # .8 .8 .8 .6 and then .48 of responses, over up to five steps
    assert text.startswith("80% of responses are cut off")


def test_evaluation_on_a_line_of_its_own_joins_its_step(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "r",
        '{"step": 2, "reward": 1}\n{"step": 2, "eval/accuracy": 0.5}\n{"step": 0, "eval/accuracy": 0}',
    )
    run = read_run(folder)
    assert run.steps == [0, 2]
    assert run.metrics == {"eval/accuracy": [0.0, 0.5], "reward": [None, 1.0]}


def test_nan_infinity_null_and_words_are_not_recorded_values(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "r", '{"step": 1, "a": NaN, "b": -Infinity, "c": null, "d": "x", "e": 2, "f": true}\n'
    )
    assert read_run(folder).metrics == {"e": [2.0]}
    assert "NaN" not in json.dumps(chunks(report.build_page([read_run(folder)])))


def test_a_torn_line_is_left_out_and_said_unless_it_is_being_written(tmp_path: Path) -> None:
    note = "metrics.jsonl: 1 line left out: not complete JSON."
    last = read_run(make_run(tmp_path / "last", '{"step": 1, "reward": 1}\n{"step": 2, "rew'))
    inside = read_run(make_run(tmp_path / "inside", '{"step": 1, "rew\n{"step": 2, "reward": 1}\n'))
    assert (last.steps, inside.steps) == ([1], [2])
    assert note not in last.notes and note in inside.notes


def test_torn_rollout_line_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", rollouts=[rollout(("model", "a")), rollout(("model", "b"))])
    file = folder / "rollouts" / "step_000001.jsonl"
    file.write_text(file.read_text()[:-20])
    assert len(chunks(report.build_page([read_run(folder)]))["data"]["traces"]["step"]) == 1


def test_run_without_metrics_still_gives_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", rollouts=[rollout(("model", "hello"))])
    data = chunks(report.build_page(read_runs([folder])))
    assert data["data"]["runs"][0]["steps"] == []
    assert data["g0"][0]["segments"][0]["text"] == "hello"


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_what_is_not_a_run_is_refused_in_one_line(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "no")
    with pytest.raises(UserError) as caught:
        report.write_report([tmp_path / "no"], tmp_path / "page.html")
    assert str(tmp_path / "no") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable_place_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", '{"step": 1, "reward": 0}\n')
    with pytest.raises(UserError, match="cannot write the report"):
        report.write_report([folder], tmp_path / "missing" / "page.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="cannot write the report"):
        report.write_report([folder], tmp_path / "taken")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "taken"}


def test_nothing_from_a_run_can_end_a_script_element(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--"
    lone = "\ud83d\x00\u202e"
    folder = make_run(
        tmp_path / "r",
        json.dumps({"step": 1, evil: 1.0}) + "\n",
        rollouts=[rollout(("model", evil + lone), problem=evil)],
    )
    (folder / "metadata.json").write_text(json.dumps({"name": evil + "\ud83d"}))
    page = report.write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8")
    assert evil not in page
    assert page.count("<script") == 1 + len(chunks(page))
    assert chunks(page)["g0"][0]["segments"][0]["text"] == evil + lone


def test_policy_forbids_the_network_and_names_the_hash_of_the_only_script(tmp_path: Path) -> None:
    import hashlib

    page = report.build_page([read_run(make_run(tmp_path / "r", '{"step": 1, "a": 1}\n'))])
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1].startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'sha256-")
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert "@import" not in page and "url(" not in page


def test_a_folder_of_runs_stands_for_those_beneath_it(tmp_path: Path) -> None:
    for name in ("seed1/tool", "seed1/control"):
        make_run(tmp_path / name, '{"step": 1, "reward": 0.5}')
    assert [run.path.name for run in read_runs([tmp_path])] == ["control", "tool"]
    assert [run.path.name for run in read_runs([tmp_path / "seed1" / "tool"])] == ["tool"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / where / "run", '{"step": 1, "a": 1}\n') for where in "ab"]
    assert [run.name for run in read_runs(runs)] == ["run", "run #2"]


def test_groups_are_kept_whole_and_cover_the_run_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_synthetic(tmp_path / "run", steps=33, prompts=3, samples=4, tool_calls=0, words=3)
    monkeypatch.setattr(traces, "MAX_FULL", 4 * 9)
    kept = Traces([read_run(folder)], max_characters=10**9)
    columns = kept.as_data()
    whole_steps = {step for step, chunk in zip(columns["step"], columns["chunk"]) if chunk >= 0}
    assert {1, 5, 9, 13, 17, 21, 25, 29, 33} - whole_steps <= {29, 25}  # up to two went to shown-first groups
    for chunk in range(len(kept.chunks)):
        assert columns["chunk"].count(chunk) == 4


def test_page_keeps_within_its_bound_of_characters(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run", steps=10, prompts=2, samples=4)
    kept = Traces([read_run(folder)], max_characters=20_000)
    assert 0 < sum(map(len, kept.chunks)) <= 20_000
    assert len(kept.rows) == 80


def test_long_runs_are_summarised_from_steps_spread_evenly(tmp_path: Path) -> None:
    files = [tmp_path / f"step_{i:06d}.jsonl" for i in range(1, 102)]
    for file in files:
        file.write_text("{}\n" * 10)
    assert [int(file.stem[5:]) for file in spread_files(files, 110)] == [
        1,
        11,
        21,
        31,
        41,
        51,
        61,
        71,
        81,
        91,
        101,
    ]
    assert spread_files(files, 1010) == files
    assert spread_files([], 10) == []


def test_every_prefix_of_the_coverage_order_spans_the_run() -> None:
    assert bisected(list(range(9))) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    assert [bisected(list(range(n))) for n in range(3)] == [[], [0], [0, 1]]


def test_first_example_of_each_behaviour_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [rollout(("model", "plain"), group=i, problem_id=str(i)) for i in range(6)]
    lines[3] = rollout(("model", CODE), ("tool", "E"), ("model", CODE), calls=("error", "ok"), group=3)
    monkeypatch.setattr(traces, "MAX_FULL", 1)
    folder = make_run(tmp_path / "r", rollouts=lines)
    columns = Traces([read_run(folder)], max_characters=10**6).as_data()
    assert columns["chunk"] == [-1, -1, -1, 0, -1, -1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (rollout(("model", "42")), {"correct"}),
        (rollout(("model", "x"), reward_parts={"correct": 0.0}), set()),
        (rollout(("model", CODE), ("tool", "42"), ("model", "ok"), calls=("ok",)), {"correct", "code"}),
        (rollout(("model", CODE), ("tool", "E"), calls=("timeout",)), {"correct", "code", "failed"}),
        (
            rollout(("model", CODE), ("tool", "E"), ("model", CODE), ("tool", "42"), calls=("error", "ok")),
            {"correct", "code", "failed", "recovered"},
        ),
        (
            rollout(("model", CODE), ("tool", "42"), ("model", CODE), ("tool", "E"), calls=("ok", "error")),
            {"correct", "code", "failed"},
        ),
        (
            rollout(("model", CODE), ("tool", ""), calls=("infrastructure",), valid=False),
            {"correct", "code", "invalid"},
        ),
        (rollout(("model", CODE + "\n42\n```\nDone")), {"correct", "code", "fake"}),
        (rollout(("model", CODE)), {"correct", "code", "fake"}),
        (
            rollout(
                ("model", CODE), ("tool", "42"), ("model", "\\boxed{41}"), calls=("ok",), stdout="x = 42\n",
                reward_parts={"correct": 0.0},
            ),
            {"code", "contradiction"},
        ),
        (
            rollout(("model", CODE), ("tool", "4"), ("model", "\\boxed{42}"), calls=("ok",), stdout="x = 42\n"),
            {"correct", "code"},
        ),
        (
            rollout(("model", CODE), ("tool", "42"), ("model", "Wait, so yes"), calls=("ok",)),
            {"correct", "code", "aha"},
        ),
        (
            rollout(("model", "\\boxed{41}\n" + CODE), ("tool", "42"), ("model", "\\boxed{42}"), calls=("ok",)),
            {"correct", "code", "aha"},
        ),
        (rollout(("model", "wait"), finish_reason="length"), {"correct", "cut"}),
    ],
)  # fmt: skip
def test_behaviours_are_recognised(line: dict[str, Any], expected: set[str]) -> None:
    assert flags(line) == expected


def test_the_browser_and_the_metrics_call_the_same_things_by_one_name() -> None:
    from grpo_tir.monitor.metrics import summarize
    from grpo_tir.monitor.run_log import trajectory
    from grpo_tir.types import Problem, Reward, Rollout, Segment, ToolCall, ToolResult

    texts = [CODE, CODE + "\n4\n```\n", "\\boxed{42}", "\\boxed{7}", "none"]
    results = [ToolResult("ok", "42\n"), ToolResult("error", "", "E"), ToolResult("ok", ""), None]
    for first, last, one, two in itertools.product(texts, texts, results, results):
        segments = [Segment("model", [1], [0.0], first), Segment("tool", [2], [], "x")] * 2
        line = Rollout(Problem("1", "p", "42"), [], segments=[*segments, Segment("model", [3], [0.0], last)])
        line.calls = [ToolCall("print(42)", result) for result in (one, two)]
        line.reward = Reward(1.0, {"correct": 1.0})
        found, row = flags(trajectory(line, 1)), summarize(line, 2)
        assert ("recovered" in found) == (row["recovered"] > 0)
        assert ("fake" in found) == (row["fake_outputs"] > 0)
        assert ("contradiction" in found) == bool(row["contradicts"])
        assert ("code" in found) == (row["written"] > 0)


def test_ratio_is_the_learners_probability_over_the_samplers() -> None:
    line = rollout(("model", "abc"))
    line["segments"][0].update(logprobs=[-1.0, -1.0, -2.0], old_logprobs=[-1.0, -0.5, None])
    segment = full_rollout(line)["segments"][0]
    assert segment["logprobs"] == [-100, -100, -200]
    assert segment["ratios"] == [1000, 1649, None]  # exp(0), exp(0.5)
    assert segment["ids"] == [0, 0, 0]


def test_tokens_are_spelled_by_the_tokenizer_of_a_checkpoint(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    folder = make_run(tmp_path / "r", rollouts=[rollout(("model", "yes"), prompt_ids=[1, 0])])
    checkpoint = folder / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    Tokenizer(models.WordLevel({"yes": 0, "no": 1}, unk_token="no")).save(str(checkpoint / "tokenizer.json"))
    (kept,) = chunks(report.build_page([read_run(folder)]))["g0"]
    assert kept["segments"][0]["tokens"] == ["yes", "yes", "yes"]
    assert kept["segments"][0]["text"] == "yes"  # kept, since the tokens do not spell it
    assert kept["prompt"] == "no yes"


def test_broken_tokenizer_is_said_and_ids_are_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", rollouts=[rollout(("model", "yes"))])
    (folder / "checkpoints" / "step_000001").mkdir(parents=True)
    (folder / "checkpoints" / "step_000001" / "tokenizer.json").write_text("{")
    data = chunks(report.build_page([read_run(folder)]))
    assert data["g0"][0]["segments"][0]["ids"] == [0, 0, 0]
    assert any("tokenizer.json" in note for note in data["data"]["runs"][0]["notes"])


def test_lines_of_the_wrong_shape_do_no_harm(tmp_path: Path) -> None:
    lines: list[Any] = [
        {},
        {"segments": None, "calls": 3, "reward": "x"},
        {"segments": [1, {"text": None}], "step": 2},
    ]
    folder = make_run(tmp_path / "r", rollouts=lines)
    (folder / "config.yaml").write_text("a: [")
    (folder / "metadata.json").write_text("[]")
    run = read_run(folder)
    assert run.name == "r" and run.config == {} and "config.yaml could not be read." in run.notes
    assert len(chunks(report.build_page([run]))["data"]["traces"]["step"]) == 3


def test_integers_beyond_float_are_no_number() -> None:
    assert read.number(10**400) is None
    assert read.number(1 / 3) == 0.3333333


def test_watching_a_folder_of_runs_shows_each_new_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", '{"step": 1, "reward": 0.0}\n')
    watched = Watched([tmp_path / "runs"])
    watched.refresh()
    first = watched.version
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward": 1.0}\n')
    watched._not_before = 0.0
    watched.refresh()
    assert watched.version != first
    data = json.loads(gzip.decompress(base64.b64decode(watched.chunks["data"])))
    assert data["runs"][0]["steps"] == [1, 2]
