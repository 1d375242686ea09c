"""Every recipe loads, and every example of one's own parts does what its docstring says."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import random
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from grpo_tir import cli
from grpo_tir.config import Config, check_for_training, save_config
from grpo_tir.data.problems import load_problems
from grpo_tir.data.prompts import make_renderer
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.testing import byte_tokenizer
from grpo_tir.tools.functions import call_function, schema_of
from grpo_tir.tools.python import find_code
from grpo_tir.types import Problem, Rollout, Segment, ToolCall, ToolResult
from grpo_tir.utils.recipe import load_config
from grpo_tir.utils.resources import load_object, recipes_dir
from tiny_policy import change, save_byte_model

RECIPES = sorted(path for path in recipes_dir().rglob("*.yaml") if path.parent.name != "accelerate")
EXAMPLES = sorted(recipes_dir().glob("custom/*"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_opens_with_its_command_and_survives_being_saved(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "grpo" in head and "Hardware" in head and "Expected" in head
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_the_paper_s_recipe_has_the_paper_s_numbers() -> None:
    config = load_config(recipes_dir() / "torl_1.5b.yaml")
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (128, 16)
    assert (config.data.max_prompt_length, config.rollout.max_completion_length) == (400, 3072)
    assert (config.optim.lr, config.optim.betas, config.optim.weight_decay) == (1e-6, (0.9, 0.999), 0.01)
    assert (config.tool.max_tool_calls, config.reward.code_penalty, config.algorithm.kl_coef) == (1, 0.0, 0.0)
    assert (config.rollout.temperature, config.train.save_every, config.executor.timeout) == (1.0, 20, 10.0)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_under_thirty_lines(path: Path) -> None:
    if path.is_file():
        assert len(path.read_text().splitlines()) < 30


@pytest.mark.parametrize(
    ("boxed", "status", "value"), [("4", "ok", 1.0), ("4", "error", 0.5), ("5", "ok", 0.0), ("4", None, 0.5)]
)
def test_the_example_reward_halves_what_was_not_checked(boxed: str, status: str | None, value: float) -> None:
    reward = load_object("recipes/custom/reward.py:checked")
    problem = Problem("1", "2+2?", "4")
    rollout = Rollout(problem, [], segments=[Segment("model", [1], [0.0], f"\\boxed{{{boxed}}}")])
    rollout.calls = [ToolCall("print(4)", ToolResult(status))] if status else []
    assert reward(problem, rollout).value == value


def test_the_example_tool_calculates_what_stands_above_the_marker() -> None:
    tool = load_object("recipes/custom/tool.py:Calculator")(change(Config(), executor__kind="process"))
    try:
        code = tool.find_call("Let me see.\n6*7\n```output")
        assert code == "6*7"
        assert tool.observe(tool.submit(code).result(), "6*7\n```output") == "\n42\n```\n"
    finally:
        tool.close()


@pytest.mark.parametrize(
    ("said", "sql", "correct", "supported"),
    [
        ("*Yes*", "SELECT * FROM interactions WHERE a = 'JNKK'", 1.0, 1.0),
        ("*No*", "SELECT * FROM interactions WHERE a = 'JNKK'", 0.0, 1.0),
        ("*yes*", "SELECT * FROM interactions WHERE a = 'X'", 1.0, 0.0),
        ("yes", "DROP TABLE interactions", 0.0, 0.0),
    ],
)
def test_the_example_of_a_database_rewards_an_answer_that_its_queries_support(
    said: str, sql: str, correct: float, supported: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(sqlite3.connect("biogrid.db")) as database:
        database.executescript("CREATE TABLE interactions (a); INSERT INTO interactions VALUES ('JNKK')")
    result = call_function(load_object("recipes/custom/database.py:query"), {"sql": sql}, 10)
    assert schema_of(load_object("recipes/custom/database.py:query"))["function"]["name"] == "query"
    assert (result.status == "ok") == sql.startswith("SELECT"), "the database is read-only"
    rollout = Rollout(Problem("1", "Is it?", "Yes"), [], segments=[Segment("model", [1], [0.0], said)])
    rollout.calls = [ToolCall(sql, result)]
    reward = load_object("recipes/custom/database.py:evidence")(rollout.problem, rollout)
    assert reward.parts == {"correct": correct, "supported": supported}


def test_the_example_template_and_dataset_work() -> None:
    render = make_renderer(str(recipes_dir() / "custom/template.txt"))
    problems, skipped = load_problems("recipes/custom/dataset.py:primes")
    assert not skipped and problems[9].answer == "25"  # 25 primes below 100
    assert "Problem: How many primes are less than 100?\nSolution:\n" in render(problems[9])


def test_recipes_and_overrides_of_the_old_key_still_load(tmp_path: Path) -> None:
    """`tool.stop` became `tool.format`. What is named last counts."""
    (tmp_path / "old.yaml").write_text("tool: {stop: fence}\n")
    assert load_config(tmp_path / "old.yaml").tool.format == "fence"
    assert load_config(tmp_path / "old.yaml", ["--tool.format", "output"]).tool.format == "output"
    assert load_config(recipes_dir() / "torl_1.5b.yaml", ["--tool.stop", "fence"]).tool.format == "fence"


def test_the_scoring_run_meets_every_problem_five_times() -> None:
    """370 steps of 1,024 are five epochs of the paper's 75,149; dynamic sampling would leave visits out."""
    config = load_config(recipes_dir() / "limr_scores.yaml")
    met = config.train.steps * config.rollout.prompts_per_step / 75_149
    assert 5 <= met < 5.1 and config.data.shuffle and not config.algorithm.dynamic_sampling


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, and problems one of whose prompts is too long."""
    folder = tmp_path_factory.mktemp("made")
    save_byte_model(folder / "model", num_hidden_layers=1, max_position_embeddings=8192)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    (folder / "model" / "chat_template.jinja").write_text(template)
    rows = [{"problem": f"{i} + {i}?", "answer": str(2 * i)} for i in range(9)]
    rows.append({"problem": "1 + 1?" + " " * 400 + "!", "answer": "2"})
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(recipes_dir()).with_suffix("")))
def test_every_recipe_can_train_and_renders_its_prompts(path: Path, made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    config = load_config(path, ["--data.train", str(made / "problems.jsonl")])
    check_for_training(config)
    make_reward(config.reward, config.rollout.max_completion_length)
    problem = load_problems(config.data.train)[0][0]
    assert "0 + 0?" in make_renderer(config.data.template, tokenizer, config.data.system)(problem)


OF_A_PUBLISHED_MODEL = [path for path in RECIPES if load_config(path).model.path[0].isupper()]
"""The quickstart and `smollm2_135m` train a model that was made or prepared in a folder."""


def test_the_prepared_chat_template_gives_the_text_of_its_file() -> None:
    prepare = load_object(f"{recipes_dir() / 'smollm2/prepare.py'}:chat_template")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = prepare()
    said = make_renderer("chat", tokenizer)(Problem("p", "What is 1 + 1?", "2"))
    assert said == (recipes_dir() / "smollm2/chat.txt").read_text().replace("{problem}", "What is 1 + 1?")


def test_prepared_traces_hold_what_their_programs_print() -> None:
    rows = load_object(f"{recipes_dir() / 'smollm2/prepare.py'}:rows")(60, set(), random.Random(1))
    assert len({row["problem"] for row in rows}) == 60
    for row in rows:
        call, shown, last = (segment["text"] for segment in row["segments"])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(find_code(call.removesuffix("```output")))
        assert shown == f"\n{out.getvalue().strip()}\n```\n" and last == f"\\boxed{{{row['answer']}}}"
        assert out.getvalue().strip() == row["answer"] and int(row["answer"]) > 0


def test_prepared_word_traces_do_one_correct_operation_a_line_and_end_in_the_answer() -> None:
    prepare = f"{recipes_dir() / 'smollm2/prepare.py'}"
    in_words = load_object(f"{prepare}:in_words")
    for row in load_object(f"{prepare}:rows")(60, set(), random.Random(1)):
        program = re.findall(r"\d+|[-+*]", row["segments"][0]["text"])
        *lines, box = in_words(row)["segments"][0]["text"].split("\n")
        for line in lines:
            left, right = line.split(" = ")
            assert eval(left) == int(right) and len(left.split()) == 3
        assert right == row["answer"] and box == f"\\boxed{{{right}}}"
        assert len(lines) == len(program) // 2  # as many operations as the program


@pytest.mark.parametrize("path", OF_A_PUBLISHED_MODEL, ids=lambda path: path.stem)
def test_every_recipe_fits_the_hardware_that_it_names(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {"torl_7b": ["--zero", "3"], "small_0.5b": ["--gpus", "1", "--gpu-memory", "24GB"]}
    machine["llama_3.2_1b"] = ["--gpus", "1", "--gpu-memory", "80GB"]
    assert cli.main(["plan", str(path), *machine.get(path.stem, [])]) == 0
    assert "it fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--data.max_prompt_length", "9000"], "= 12072, but"),
        (["--data.max_prompt_length", "3"], "no problem is short enough"),
        (["--data.template", "torll"], "`torll` is neither a template"),
        (["--data.train", "nowhere.jsonl"], "there is no such file"),
        (["--model.path", "./nowhere"], "no model folder at ./nowhere"),
        (["--model.path", "quickstart"], "grpo-tir quickstart"),
    ],
)
def test_a_run_that_cannot_start_ends_in_one_line(
    arguments: list[str], says: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--model.path", str(made / "model"), "--data.train", str(made / "problems.jsonl")]
    start += ["--tool.max_tool_calls", "0", "--train.output_dir", str(tmp_path / "run")]
    assert cli.main(["train", "torl_1.5b", *start, *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo-tir: ")]
    assert says in line


def test_an_ablation_differs_from_its_control_in_what_it_is_named_for() -> None:
    """Every key that differs from c1, apart from the folder and the list of deviations."""
    expected = {
        "c0": {"max_tool_calls": 0},
        "c1": {},
        "c2": {"max_tool_calls": 2},
        "c4": {"max_tool_calls": 4},
        "penalty": {"code_penalty": -0.5},
        "penalty_reference": {"code_penalty": -0.5, "no_code_penalty": -0.5},
        "no_std": {"scale_rewards": False},
        "clip_higher": {"clip_high": 0.28, "mini_batches": 4},
        "dynamic_sampling": {"dynamic_sampling": 3},
    }
    ablations = {path.stem: flat(load_config(path)) for path in recipes_dir().glob("ablations/*.yaml")}
    control = ablations["c1"]
    found = {
        name: {key.partition(".")[2]: value for key, value in settings.items() if control[key] != value}
        for name, settings in ablations.items()
    }
    assert found == expected
    paper = flat(load_config(recipes_dir() / "torl_1.5b.yaml"))
    assert {key for key in paper if paper[key] != control[key]} == {"train.steps"}


def flat(config: Config) -> dict[str, object]:
    sections = {name: part for name, part in dataclasses.asdict(config).items() if name != "deviations"}
    settings = {f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()}
    return {key: value for key, value in settings.items() if key != "train.output_dir"}


def test_a_program_of_the_recipes_comes_before_a_module_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "paper.py").write_text("raise RuntimeError('not this one')")
    done = subprocess.run([sys.executable, "-m", "grpo_tir", "paper", "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"--seeds" in done.stdout, done.stderr.decode()
