"""Bad input ends with one clear line and exit code 2: what, where, and how to mend it. Never with a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertForMaskedLM, Qwen2ForSequenceClassification, T5Config

from grpo_tir import cli
from grpo_tir.monitor import run_log
from grpo_tir.testing import byte_tokenizer
from tiny_policy import save_byte_model

Recipe = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1)


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """One that would work, in an empty working folder; each test breaks one thing."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "problem": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"path": str(model)},
        "data": {"train": "problems.jsonl", "template": "plain"},
        "rollout": {"prompts_per_step": 1, "samples_per_prompt": 2, "max_completion_length": 8},
        "tool": {"max_tool_calls": 0},
        "train": {"steps": 1, "output_dir": "run", "report_to": []},
    }


@pytest.fixture
def fails(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `train` and return the line that it ends with."""

    def run(*arguments: str, recipe_path: str = "recipe.yaml") -> str:
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        capsys.readouterr()
        code = cli.main(["train", recipe_path, *arguments])
        ours = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grpo-tir: ")]
        assert code == 2
        assert len(ours) == 1, ours
        return ours[0]

    return run


def test_the_recipe_of_these_tests_trains_as_it_is(recipe: Recipe) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", "recipe.yaml"]) == 0


@pytest.mark.parametrize(
    "override, says",
    [
        ("--optim.lerning_rate=1", "unknown key `optim.lerning_rate`"),
        ("--optim.lr=fast", "`optim.lr` must be a number, not 'fast'"),
        ("--rollout.samples_per_prompt=1", "rollout.samples_per_prompt must be 2 or more"),
        ("--rollout.top_p=0.5", "are for evaluation"),
        ("--rollout.temperature=0", "is greedy"),
        ("--algorithm.mini_batches=2", "cannot exceed rollout.prompts_per_step"),
        ("--rollout.carry_over=1.5", "rollout.carry_over is 1.5: it must be from 0 to 1"),
        ("--rollout.carry_over=0.5", "rollout.carry_over needs algorithm.importance_cap"),
        ("--data.max_prompt_length=99999", "positions"),
        ("--data.max_prompt_length=1", "no problem is short enough"),
        ("--reward.function=nowhere:reward", "there is no module nowhere"),
        ("--reward.function=grpo_tir.rollouts.rewards:math_rewrad", "did you mean `math_reward`?"),
        ("--data.train=missing.jsonl", "there is no such file"),
        ("--data.eval=missing.jsonl", "there is no such file"),
        ("--data.template=torll", "`torll` is neither a template (torl, torl_0307, plain, chat)"),
        ("--data.template=chat", "needs a tokenizer with a chat template"),
        ("--model.path=./nowhere", "no model folder at ./nowhere"),
        ("--model.path=nobody/nothing", "cannot load the model nobody/nothing"),
        ("--rollout.generator=enigne", "rollout.generator"),
    ],
)
def test_setting_that_cannot_work(override: str, says: str, fails: Callable[..., str]) -> None:
    assert says in fails(override)


def test_recipe_not_found_names_the_nearest(fails: Callable[..., str]) -> None:
    assert "did you mean `quickstart`?" in fails(recipe_path="quikstart")


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"problem": "1 + 1", "answer"', "line 5: wrong JSON"),
        ('{"problem": "1 + 1", "answer": null}', "line 5: "),
        ('{"question": "1 + 1", "answer": "2", "id": "9"}', "data.problem_field (`grpo-tir data`"),
        ('["1 + 1", "2"]', "line 5: a row is an object"),
        ('{"id": "0", "problem": "1 + 1", "answer": "2"}', "the id 0 is taken by line 1"),
    ],
)
def test_bad_line_of_jsonl_is_named(line: str, says: str, fails: Callable[..., str]) -> None:
    with open("problems.jsonl", "a") as file:
        file.write(line + "\n")
    assert says in fails()


def test_template_without_the_problem(fails: Callable[..., str]) -> None:
    Path("template.txt").write_text("Solve this:")
    assert "template.txt must hold {problem} exactly once" in fails("--data.template=template.txt")


def bert(folder: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=264, max_position_embeddings=8192, eos_token_id=256, initializer_range=0.3, **shape
    )
    config.architectures = ["BertForMaskedLM"]
    BertForMaskedLM(config).save_pretrained(folder)


def t5(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


def torn(folder: Path) -> None:
    save_byte_model(folder)
    with open(folder / "model.safetensors", "r+b") as file:
        file.truncate(1000)


def no_weights(folder: Path) -> None:
    save_byte_model(folder)
    (folder / "model.safetensors").unlink()


def classifier(folder: Path) -> None:
    """Its head is of another kind: as a causal model it would get a random one."""
    config = save_and_read_config(folder)
    config.tie_word_embeddings, config.pad_token_id = False, 256
    Qwen2ForSequenceClassification(config).save_pretrained(folder)


def save_and_read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(save_byte_model(folder))


@pytest.mark.parametrize(
    "make, says",
    [
        (bert, "no causal language model"),
        (t5, "cannot load the model"),
        (empty, "cannot load the model"),
        (torn, "cannot load the model"),
        (no_weights, "cannot load the model"),
        (classifier, "weights of a language model"),
    ],
)
def test_folder_without_a_usable_causal_model(
    make: Callable[[Path], None], says: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder = tmp_path / "broken"
    make(folder)
    if make is not empty:
        byte_tokenizer(["<|end|>"]).save_pretrained(folder)
    assert says in fails(f"--model.path={folder}")


def test_weights_that_are_not_finite_are_seen_before_the_first_step(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_byte_model(tmp_path / "nan")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    model.save_pretrained(folder)
    assert "NaN" in fails(f"--model.path={folder}")


def test_docker_asked_for_without_an_engine(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent")
    said = fails("--tool.max_tool_calls=1", "--executor.kind=docker")
    assert "process" in said, "the way out is named"


def test_docker_image_that_was_never_built_names_the_command(fails: Callable[..., str]) -> None:
    said = fails("--tool.max_tool_calls=1", "--executor.kind=docker", "--executor.image=grpo-tir-never-built")
    assert "grpo-tir sandbox build" in said or "engine" in said


def test_output_folder_that_cannot_be_written(fails: Callable[..., str]) -> None:
    Path("file").write_text("")
    assert "cannot write to train.output_dir file/run: Not a directory" in fails("--train.output_dir=file/run")
    assert "cannot write to train.output_dir file: File exists" in fails("--train.output_dir=file")
    assert "cannot write to train.output_dir /proc/run" in fails("--train.output_dir=/proc/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder(fails: Callable[..., str]) -> None:
    Path("locked").mkdir(mode=0o555)
    assert "Permission denied" in fails("--train.output_dir=locked")


def test_output_folder_that_already_holds_a_run(fails: Callable[..., str]) -> None:
    Path("recipe.yaml").write_text("")
    Path("run/checkpoints/step_000001").mkdir(parents=True)
    assert "--resume" in fails()


def test_resume_with_nothing_whole_to_resume(fails: Callable[..., str]) -> None:
    Path("run/checkpoints/step_000001").mkdir(parents=True)
    assert "has no intact checkpoint" in fails("--resume")


def test_resume_before_the_first_checkpoint_begins_and_says_so(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", "recipe.yaml", "--resume"]) == 0
    assert "run has no checkpoint yet: starting from the beginning" in capsys.readouterr().out


def test_resume_of_another_seed(recipe: Recipe, fails: Callable[..., str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", "recipe.yaml"]) == 0
    assert "seed 1" in fails("--resume", "--train.seed=2")


def test_disk_that_fills_up_while_training(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_log, "append_lines", full)
    assert "No space left on device" in fails()


def test_disk_that_fills_up_while_saving(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 6272 vs 6164")

    monkeypatch.setattr("grpo_tir.checkpoint.save.torch.save", full)
    said = fails()
    assert "cannot save the checkpoint" in said and "earlier checkpoints are untouched" in said


@pytest.mark.parametrize("command", [["eval"], ["solve", "1 + 1?", "--model"]])
def test_other_commands_say_it_as_clearly(
    command: list[str], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, "./nowhere", "--tool.max_tool_calls=0", "--model.precision=fp32"]
    assert cli.main([*arguments, *(["--data", "problems.jsonl"] if command == ["eval"] else [])]) == 2
    assert "no model folder at ./nowhere" in capsys.readouterr().err


def test_a_run_is_no_model_but_its_checkpoint_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    settings = ["--tool.max_tool_calls=0", "--model.precision=fp32"]
    assert cli.main(["solve", "1 + 1?", "--model", str(tmp_path / "run"), *settings]) == 2
    said = capsys.readouterr().err
    assert "it holds no config.json" in said and f"did you mean {checkpoint}?" in said


def test_an_empty_problem_is_not_solved(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["solve", " ", "--model", "./nowhere"]) == 2
    assert "the problem is empty" in capsys.readouterr().err


def test_a_user_sees_one_line_and_no_traceback(recipe: Recipe) -> None:
    """The same through the real command."""
    recipe["model"]["path"] = "./nowhere"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, "-m", "grpo_tir", "train", "recipe.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.splitlines()[-1].startswith("grpo-tir: no model folder at ./nowhere")
