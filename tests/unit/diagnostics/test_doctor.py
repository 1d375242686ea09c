"""The doctor names every fault that is put in its way, and finds none where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from chat_models import CHATML_TOKENS, FORGETS, LLAMA, LLAMA_TOKENS, QWEN, QWEN_TAGS, QWEN_THINKS, bpe_tokenizer
from grpo_tir.cli import main
from grpo_tir.config import Config
from grpo_tir.data.prompts import make_renderer
from grpo_tir.diagnostics import doctor
from grpo_tir.diagnostics import executor as executor_checks
from grpo_tir.diagnostics import model as policy_checks
from grpo_tir.diagnostics.finding import Finding, guarded
from grpo_tir.diagnostics.grader import check_grader
from grpo_tir.diagnostics.memory import Hardware
from grpo_tir.diagnostics.problems import check_problems
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import TemplateError
from grpo_tir.grading import worker
from grpo_tir.rollouts.policy import Policy, load_policy
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.types import Problem, ToolResult
from made_benchmarks import write_benchmarks
from tiny_policy import change, save_byte_model, tiny_qwen2

CPU = torch.device("cpu")


def faults(findings: Iterable[Finding], level: str = "fault") -> list[str]:
    return [f"{found.check}: {found.text}" for found in findings if found.level == level]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, four problems, and a recipe in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("doctor")
    save_byte_model(folder / "model")
    rows = [{"id": str(n), "problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {"train": str(folder / "problems.jsonl"), "template": "plain"},
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 4, "max_completion_length": 60},
        "executor": {"kind": "process", "slots": 2, "memory_mb": 128, "timeout": 5},
        "train": {"output_dir": str(folder / "run"), "report_to": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def config(folder: Path) -> Config:
    return change(
        Config(), model__path=str(folder / "model"), data__train=str(folder / "problems.jsonl"),
        data__template="plain", rollout__max_completion_length=60, train__output_dir=str(folder / "run"),
        train__report_to=[],
    )  # fmt: skip


@pytest.fixture
def policy(config: Config) -> Policy:
    return load_policy(config, config.model.path, CPU)


# --- the whole command --------------------------------------------------------------------------------------


def test_where_nothing_is_wrong_it_says_so_and_leaves_nothing_behind(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(folder / "recipe.yaml")]) == 0
    said = capsys.readouterr().out
    assert "FAULT" not in said and "no problems found" in said
    for check in (
        "settings",
        "problems",
        "grader",
        "executor",
        "model",
        "template",
        "markers",
        "ends",
        "memory",
        "disk",
    ):
        assert f"ok    {check}" in said
    assert not (folder / "run").exists() and executor_checks.CANARY not in os.environ


@pytest.mark.docker
def test_the_container_holds_the_four_attacks() -> None:
    config = change(Config(), executor__slots=2, executor__memory_mb=128, rollout__prompts_per_step=1)
    found = list(executor_checks.check_executor(config))
    assert faults(found) == faults(found, "warning") == []
    assert any("4 attacks failed" in finding.text for finding in found)


@pytest.mark.parametrize(
    ("overrides", "check", "says"),
    [
        (["--data.train", "nowhere.jsonl"], "problems", "nowhere.jsonl"),
        (["--data.eval", "{folder}/problems.jsonl"], "problems", "4 of 4 problems of data.eval are trained on"),
        (["--rollout.prompts_per_step", "5"], "problems", "4 problems are fewer than rollout.prompts_per_step 5"),
        (["--model.path", "{folder}/nothing"], "model", "no model folder at"),
        (["--rollout.max_completion_length", "4000"], "model", "but {folder}/model has 2048 positions"),
        (["--data.max_prompt_length", "3"], "template", "4 of 4 prompts are longer than data.max_prompt_length 3"),
        (["--data.template", "nowhere.txt"], "model", "neither a template"),
        (["--rollout.top_p", "0.9"], "settings", "rollout.top_p/top_k/min_p are for evaluation"),
        (["--reward.function", "nowhere.py:reward"], "settings", "there is no file nowhere.py"),
        (["--train.report_to", "[wandb]"], "settings", "wandb, which is not installed"),
        (["--train.output_dir", "/proc/run"], "model", "cannot write to train.output_dir /proc/run"),
        (["--train.output_dir", "{folder}/old"], "settings", "already holds a run"),
    ],
)
def test_each_fault_of_a_recipe_is_named(
    overrides: list[str],
    check: str,
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "old" / "checkpoints").mkdir(parents=True, exist_ok=True)
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    monkeypatch.setattr("grpo_tir.diagnostics.grader.check_grader", lambda problems: [])  # has tests of its own
    monkeypatch.setattr("grpo_tir.diagnostics.executor.check_executor", lambda config: [])
    assert main(["doctor", str(folder / "recipe.yaml"), *(part.format(folder=folder) for part in overrides)]) == 1
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT")]
    assert any(line.startswith(f"FAULT {check}") and says.format(folder=folder) in line for line in named), named


def test_training_on_a_benchmark_is_named(
    folder: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stolen = write_benchmarks(tmp_path, monkeypatch)["aime24"][0]
    copy = {"id": "mine", "problem": stolen.problem.upper(), "answer": stolen.answer}
    (folder / "stolen.jsonl").write_text((folder / "problems.jsonl").read_text() + json.dumps(copy) + "\n")
    for name, named in (("problems", 0), ("stolen", 1)):
        own = change(config, data__train=str(folder / f"{name}.jsonl"), rollout__prompts_per_step=2)
        found = faults(check_problems(own, [], str(tmp_path)))
        assert len(found) == named
    assert "1 of 5 are similar to a problem of aime24; the first, mine, to aime24 " in found[0]


def test_benchmarks_that_cannot_be_had_are_a_warning(folder: Path, config: Config, tmp_path: Path) -> None:
    found = list(check_problems(change(config, rollout__prompts_per_step=2), [], str(tmp_path)))
    (warned,) = faults(found, "warning")
    assert "not compared with the benchmarks" in warned and "aime24.jsonl" in warned


def test_an_engine_that_cannot_be_reached_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = change(Config(), executor__hosts=["tcp://127.0.0.1:9"])
    (found,) = faults(guarded("executor", lambda: executor_checks.check_executor(config)))
    assert found.startswith("executor: ") and "127.0.0.1:9" in found


# --- executor -----------------------------------------------------------------------------------------------


class Bare(ScriptedExecutor):
    """No walls at all: a child process in our own folder, with our environment. Honest otherwise."""

    def __init__(self, folder: Path, kind: str = "docker") -> None:
        self.folder, self.kind = folder, kind
        super().__init__(self.call)

    def call(self, code: str) -> ToolResult:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=self.folder, check=False
        )
        return ToolResult("error" if done.returncode else "ok", done.stdout, done.stderr, done.returncode)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind}


def test_every_attack_gets_through_where_there_are_no_walls(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(executor_checks.CANARY, "secret")
    small = change(config, executor__memory_mb=16)
    named = faults(executor_checks.check_isolation(Bare(tmp_path), small))
    assert [line.split(": ")[1] for line in named] == [
        f"not isolated, {name}" for name in ("network", "files", "secrets", "memory")
    ]
    weak = list(executor_checks.check_isolation(Bare(tmp_path, "process"), small))
    assert faults(weak) == [] and len(faults(weak, "warning")) == 4, "the weaker executor was asked for by name"


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda code: ToolResult("infrastructure"), 3),  # up, and of no use
        (lambda code: ToolResult("ok", "42\n"), 2),  # success whatever happens
        (lambda code: ToolResult("error", "", "SyntaxError: invalid", 1), 2),  # a Python that is too old
    ],
)
def test_an_executor_that_does_not_tell_the_truth_is_named(
    answer: Callable[[str], ToolResult], named: int
) -> None:
    found = faults(executor_checks.check_results(ScriptedExecutor(answer)))
    assert len(found) == named and all("grpo-tir sandbox build" in line for line in found)


def test_an_executor_too_slow_for_the_recipe_is_named(config: Config) -> None:
    def slow(code: str) -> ToolResult:
        time.sleep(0.1)  # 10 calls a second: 205 s for 2048 calls, against 120 s
        return ToolResult("ok", "1\n")

    (found,) = faults(executor_checks.check_speed(ScriptedExecutor(slow), config))
    assert "too slow" in found and "executor.slots" in found
    quick = change(config, rollout__prompts_per_step=4)  # 64 calls
    assert faults(executor_checks.check_speed(ScriptedExecutor(slow), quick)) == []
    lost = ScriptedExecutor(lambda code: ToolResult("infrastructure"))
    (found,) = faults(executor_checks.check_speed(lost, quick))
    assert "plain programs failed: infrastructure" in found


# --- grader -------------------------------------------------------------------------------------------------


def test_a_grader_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.sys, "executable", shutil.which("false"))
    (found,) = faults(check_grader([]))
    assert "grading worker does not run" in found


def test_golds_that_no_rule_can_read_are_named() -> None:
    problems = [Problem(str(n), "?", "N/A" if n % 10 == 0 else "7") for n in range(50)]
    (found,) = faults(check_grader(problems))
    assert "cannot judge 5 of 50 golds; the first, of 0: 'N/A'" in found


def test_golds_are_tried_over_the_whole_file() -> None:
    """The last golds of 399 problems are unusable: half of the golds of their second half must be tried."""
    problems = [Problem(str(n), "?", "N/A" if n >= 300 else "7") for n in range(399)]
    (found,) = faults(check_grader(problems))
    assert "cannot judge 49 of 200 golds; the first, of 301: 'N/A'" in found


# --- model --------------------------------------------------------------------------------------------------


class Tampered:
    """A tokenizer that changes text on its way in, as a normaliser does."""

    def __init__(self, inner: Any, change: Callable[[str], str]) -> None:
        self.inner, self.change = inner, change

    def __call__(self, text: str, **options: Any) -> Any:
        return self.inner(self.change(text), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_a_template_that_loses_the_problem_is_named(policy: Policy, config: Config) -> None:
    tokenizer = policy.tokenizer
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # the system message alone
    policy.render = make_renderer("chat", tokenizer)
    (found,) = faults(policy_checks.check_prompt(policy, [], config))
    assert found.startswith("template: data.template plain loses the problem")


def test_a_tokenizer_that_changes_the_prompt_is_named(policy: Policy, config: Config) -> None:
    policy.tokenizer = Tampered(policy.tokenizer, str.lower)
    (found,) = faults(policy_checks.check_prompt(policy, [], config))
    assert "the tokenizer changes the prompt: 'What is 6" in found and "'what is 6" in found


def test_a_tokenizer_that_loses_the_markers_is_named(policy: Policy) -> None:
    policy.tokenizer = Tampered(policy.tokenizer, lambda text: text.replace("`", "'"))
    (found,) = faults(policy_checks.check_markers(policy))
    assert "no call can be written or answered" in found


def test_a_stop_marker_that_cannot_be_detected_is_named(policy: Policy) -> None:
    policy.stopping.closers = frozenset()  # no token is believed to be able to close it
    (found,) = faults(policy_checks.check_markers(policy))
    assert "'```output' pauses the sequence 0 times, not once" in found and "tool.format fence" in found


@pytest.mark.parametrize("stop", ["output", "fence"])
def test_both_markers_pass_where_nothing_is_wrong(stop: str, config: Config) -> None:
    policy = load_policy(change(config, tool__format=stop), config.model.path, CPU)
    assert faults(policy_checks.check_markers(policy)) == []


def test_an_end_of_text_outside_the_vocabulary_is_named(policy: Policy) -> None:
    policy.eos_ids = [*policy.eos_ids, 151643]
    (found,) = faults(policy_checks.check_ends(policy))
    assert "end-of-text id 151643 is outside the vocabulary of" in found


def test_an_end_of_text_that_is_ordinary_text_is_named(policy: Policy) -> None:
    (newline,) = policy.tokenizer("\n")["input_ids"]
    policy.eos_ids = [*policy.eos_ids, newline]
    (found,) = faults(policy_checks.check_ends(policy))
    assert f"end-of-text id {newline} is ordinary text, '\\n'" in found


def test_an_end_of_text_that_a_program_can_print_is_named(policy: Policy) -> None:
    """Its text is one token even where special tokens are to be spelt out."""
    tokenizer, (end,) = policy.tokenizer, policy.eos_ids
    text = tokenizer.decode([end])

    class Printing(Tampered):
        def __call__(self, text_: str, **options: Any) -> Any:
            return {"input_ids": [end]} if text_ == text else self.inner(text_, **options)

    policy.tokenizer = Printing(tokenizer, str)
    (found,) = faults(policy_checks.check_ends(policy))
    assert f"a program that prints {text!r} would end its response" in found


def test_several_ends_and_padding_that_is_one_of_them_are_no_fault(policy: Policy) -> None:
    spare = len(policy.tokenizer) - 1
    policy.eos_ids = [*policy.eos_ids, spare]
    assert policy.tokenizer.pad_token_id in policy.eos_ids
    (found,) = policy_checks.check_ends(policy)
    assert found.level == "fine" and "2 end-of-text id(s)" in found.text and "harmless" in found.text


@pytest.mark.parametrize("leak", [{"repetition_penalty": 1.8}, {"temperature": 0.4}, {"top_k": 3}])
def test_a_generation_config_that_leaks_into_sampling_is_named(
    leak: dict[str, float], policy: Policy, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As peers have it: `generate` is not told otherwise, so the checkpoint's own settings act."""
    from grpo_tir.generation import generate

    for name, value in leak.items():
        setattr(policy.model.generation_config, name, value)
    policy.model.generation_config.do_sample = True
    config = change(config, rollout__generator="generate")
    runtime = Runtime("fp32")
    (honest,) = policy_checks.check_sampling(policy, runtime, config, [])
    assert honest.level == "fine" and f"sets {leak}, which is ignored" in honest.text
    monkeypatch.setattr(generate, "_only_our_settings", lambda model, eos, pad: nullcontext())
    monkeypatch.setattr(generate.KeyedDraw, "__call__", leaking(generate.KeyedDraw.__call__, leak))
    (found,) = policy_checks.check_sampling(policy, runtime, config, [])
    assert found.level == "fault" and f"sets {leak}" in found.text


def leaking(draw: Callable[..., Any], leak: dict[str, float]) -> Callable[..., Any]:
    """Warpers of transformers in front of ours; `generate` itself applies them behind a custom processor."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
    )

    kinds = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
    }
    warp = LogitsProcessorList([kinds[name](value) for name, value in leak.items()])  # type: ignore[abstract]
    return lambda self, input_ids, scores: draw(self, input_ids, warp(input_ids, scores))


def test_a_model_that_does_not_fit_is_named_with_what_would(config: Config) -> None:
    small = Hardware(1, 1e6, cpu=True)
    (found,) = faults(guarded("memory", lambda: policy_checks.check_memory(config, small)))
    assert found.startswith("memory: ")
    (fits,) = policy_checks.check_memory(config, policy_checks.this_machine(CPU))
    assert fits.level == "fine" and "fits on 1 x " in fits.text


def test_a_disk_without_room_for_the_checkpoints_is_named(
    policy: Policy, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 12 * sum(parameter.numel() for parameter in policy.model.parameters())
    usage = namedtuple("usage", "total used free")
    needed = 4 * size  # three are kept, and a new one is whole before an old one goes
    for free, level in ((needed - 1, "fault"), (needed, "fine")):
        monkeypatch.setattr(policy_checks.shutil, "disk_usage", lambda path, free=free: usage(0, 0, free))
        (found,) = policy_checks.check_disk(policy, config)
        assert found.level == level
    assert (
        "lower train.save_total_limit"
        in faults(policy_checks.check_disk(policy, change(config, train__save_total_limit=0)))[0]
    )


# --- native tool calls --------------------------------------------------------------------------------------

NATIVE = {"tool__format": "tool_call", "data__template": "chat"}


def native(tokenizer: Any, config: Config, **settings: Any) -> list[Finding]:
    """The doctor's findings on template, format and tokenizer, with a random model."""
    model = tiny_qwen2(vocabulary=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    config = change(config, **{**NATIVE, **settings})
    policy = load_policy(config, "tiny", CPU, loaded=(model, tokenizer))
    return list(policy_checks.check_format(policy, config))


@pytest.mark.parametrize("template", [QWEN, QWEN_THINKS, QWEN_TAGS, LLAMA])
def test_template_format_and_tokenizer_of_the_native_families_fit_together(template: str, config: Config) -> None:
    tokenizer = bpe_tokenizer(template, LLAMA_TOKENS if template == LLAMA else CHATML_TOKENS, 60)
    (found,) = native(tokenizer, config, tool__names=["python", "calculator"])
    assert found.level == "fine" and "python, calculator: called as" in found.text


@pytest.mark.parametrize(
    ("template", "settings", "says"),
    [
        (QWEN, {"data__template": "plain"}, "the prompt does not name the tool python: set data.template chat"),
        (QWEN.replace("<tool_call>\n", "[CALL]"), {}, 'writes a call as \'[CALL]{"name"'),
        (QWEN.replace('{"name', '{"tool'), {}, 'writes a call as \'<tool_call>\\n{"tool"'),
        (QWEN.replace("<|im_end|>", "<|done|>"), {}, "ends a turn with '<', which is no end-of-text id"),
    ],
)
def test_a_misfit_of_template_and_format_is_named(
    template: str, settings: dict[str, Any], says: str, config: Config
) -> None:
    (found,) = faults(native(bpe_tokenizer(template, CHATML_TOKENS), config, **settings))
    assert says in found


def test_a_template_that_rewrites_earlier_turns_is_refused_before_training(config: Config) -> None:
    with pytest.raises(TemplateError, match="the chat template rewrites earlier turns"):
        native(bpe_tokenizer(FORGETS, CHATML_TOKENS), config)
