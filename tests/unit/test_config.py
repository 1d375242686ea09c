"""The recipe: what it accepts, what it refuses, and how clearly."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_tir.config import Config, check_for_training, save_config
from grpo_tir.errors import ConfigError
from grpo_tir.utils.recipe import load_config, parse_overrides
from grpo_tir.utils.resources import recipes_dir


def load(tmp_path: Path, recipe: Any = "", *overrides: str) -> Config:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return load_config(path, overrides)


def test_defaults_are_those_of_torl(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config == Config()
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (128, 16)
    assert (config.rollout.temperature, config.rollout.max_completion_length) == (1.0, 3072)
    assert (config.tool.max_tool_calls, config.algorithm.kl_coef, config.optim.lr) == (1, 0.0, 1e-6)
    assert (config.reward.correct, config.reward.wrong, config.reward.code_penalty) == (1.0, -1.0, 0.0)
    assert config.executor.kind == "docker"


def test_saved_recipe_loads_again_to_an_equal_one(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {"deviations": ["shorter: é"]},
        *(
            "--optim.betas",
            "[0.9, 0.95]",
            "--data.system",
            "say \\boxed{}",
            "--executor.hosts",
            "[ssh://a, tcp://b:1]",
        ),
        *("--model.revision", "1234567", "--train.report_to", "[]"),
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_every_packaged_recipe_loads() -> None:
    recipes = [p for p in recipes_dir().rglob("*.yaml") if p.parent.name not in ("accelerate", "deepspeed")]
    assert recipes
    for path in recipes:
        load_config(path)


def test_every_setting_has_its_words_and_a_default() -> None:
    plain = dataclasses.asdict(Config())
    for section in dataclasses.fields(Config):
        assert section.name in plain


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--a.b", "1"], [("a.b", 1)]),
        (["--a.b=x=y"], [("a.b", "x=y")]),
        (["--a.flag", "--a.b", "-0.5"], [("a.flag", True), ("a.b", -0.5)]),
        (["--a.some-name", "null"], [("a.some_name", None)]),
        (["--a.b", "[1, 2]"], [("a.b", [1, 2])]),
        (["--a.b="], [("a.b", None)]),
    ],
)
def test_overrides_are_read_as_yaml(arguments: list[str], expected: list[Any]) -> None:
    assert parse_overrides(arguments) == expected


def test_overrides_win_over_the_file_and_take_yaml_s_numbers(tmp_path: Path) -> None:
    config = load(tmp_path, "optim: {lr: 1e-5}\nrollout: {temperature: 1}", "--optim.lr", "3e-6")
    assert config.optim.lr == 3e-6  # YAML 1.1 reads 1e-5 as text
    assert config.rollout.temperature == 1.0 and isinstance(config.rollout.temperature, float)


@pytest.mark.parametrize(
    "recipe, says",
    [
        ("optim: {learning_rat: 1}", "unknown key `optim.learning_rat`"),
        ("algorithm: {clip_hihg: 0.3}", "did you mean `algorithm.clip_high`?"),
        ("clip_high: 0.3", "did you mean `algorithm.clip_high`?"),
        ("optm: {lr: 1}", "did you mean `optim`?"),
        ("1: 2", "unknown key `1`"),
        ("rollout: {samples_per_prompt: 2.5}", "`rollout.samples_per_prompt` must be a whole number, not 2.5"),
        ("rollout: {samples_per_prompt: true}", "must be a whole number, not True"),
        ("train: {deterministic: 1}", "must be true or false, not 1"),
        ("optim: {lr: fast}", "`optim.lr` must be a number, not 'fast'"),
        ("optim: {lr: [1]}", "`optim.lr` must be a number"),
        ("optim: {lr: null}", "`optim.lr` must be a number, not None"),
        ("optim: {betas: [0.9]}", "`optim.betas` must be"),
        ("executor: {kind: dokcer}", "did you mean 'docker'?"),
        ("executor: {hosts: here}", "`executor.hosts` must be"),
        ("executor: {hosts: [[a]]}", "`executor.hosts[0]` must be text"),
        ("model: {path: {a: 1}}", "`model.path` must be text"),
        ("optim: 3", "`optim` is a section"),
        ("optim:", "`optim` is a section"),
        ("[1, 2]", "a recipe is a mapping of sections, this is a list"),
        ("optim: {lr: 1", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("rollout: {samples_per_prompt: 1}", "rollout.samples_per_prompt must be 2 or more"),
        ("rollout: {prompts_per_step: 0}", "rollout.prompts_per_step is 0: it must be above 0"),
        ("rollout: {temperature: -1}", "rollout.temperature is -1.0: it must be 0 or more"),
        ("tool: {max_tool_calls: -1}", "tool.max_tool_calls is -1: it must be 0 or more"),
        ("rollout: {kv_tokens: -1}", "rollout.kv_tokens is -1: it must be 0 or more"),
        ("model: {lora_alpha: -1}", "model.lora_alpha is -1.0: it must be 0 or more"),
        ("algorithm: {mini_batches: 4}\nrollout: {prompts_per_step: 2}", "cannot exceed rollout.prompts_per_step"),
        ("train: {report_to: [wandbb]}", "train.report_to: unknown ['wandbb']"),
        ("optim: {lr: .nan}", "optim.lr is nan: it must be 0 or more"),
        ("optim: {lr: -1}", "optim.lr"),
        ("optim: {max_grad_norm: 0}", "optim.max_grad_norm"),
        ("optim: {betas: [0.9, 1.0]}", "optim.betas"),
        ("algorithm: {clip_low: -0.1}", "algorithm.clip_low"),
        ("algorithm: {clip_high: .inf}", "algorithm.clip_high"),
        ("algorithm: {kl_coef: -0.1}", "algorithm.kl_coef"),
        (
            "algorithm: {sequence_mask: [3]}",
            "algorithm.sequence_mask is [3.0]: it must be [lo, hi] with 0 <= lo < 1",
        ),
        ("algorithm: {sequence_mask: [3, 0.3]}", "algorithm.sequence_mask is [3.0, 0.3]"),
        ("algorithm: {sequence_mask: [-1, 3]}", "algorithm.sequence_mask is [-1.0, 3.0]"),
        ("algorithm: {sequence_mask: [0.5, .nan]}", "algorithm.sequence_mask is [0.5, nan]"),
        ("algorithm: {sequence_mask: 3}", "`algorithm.sequence_mask` must be"),
        ("algorithm: {sequence_mask_by: max}", "`algorithm.sequence_mask_by` must be one of 'sum', 'mean'"),
        ("algorithm: {objective: cipso}", "did you mean 'cispo'?"),
        ("algorithm: {gtpo_gamma: 1.1}", "algorithm.gtpo_gamma is 1.1: it must be from 0 to 1"),
        ("train: {save_total_limit: -1}", "train.save_total_limit"),
        ("train: {eval_size: -3}", "train.eval_size"),
        ("rollout: {top_p: 0}", "rollout.top_p"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_that_names_the_key(
    recipe: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, recipe)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override, says",
    [
        ("--optim.lr", "`optim.lr` must be a number, not True"),
        ("--optim.lr.x=1", "unknown key `optim.lr`|unknown key"),
        ("--algorithm.clip_hihg=1", "did you mean `algorithm.clip_high`"),
        ("--data.train=[", "cannot read the value"),
        ("stray", "unexpected argument `stray`"),
    ],
)
def test_bad_overrides_are_refused_as_clearly(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "", override)
    assert any(part in str(caught.value) for part in says.split("|"))


def test_a_folder_or_a_missing_file_is_no_recipe(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match="cannot read the recipe"):
            load_config(path)


@pytest.mark.parametrize(
    "recipe, says",
    [
        ("rollout: {temperature: 0}", "temperature 0 is greedy"),
        ("rollout: {top_p: 0.9}", "are for evaluation"),
        ("rollout: {top_k: 5}", "are for evaluation"),
        ("rollout: {min_p: 0.1}", "are for evaluation"),
        ("", "data.train is empty"),
    ],
)
def test_training_refuses_what_evaluation_may_use(recipe: str, says: str, tmp_path: Path) -> None:
    config = load(tmp_path, recipe)
    with pytest.raises(ConfigError, match=says):
        check_for_training(config)


def test_config_and_help_load_no_torch() -> None:
    """`grpo-tir --help` and `grpo-tir train --help` must be instant."""
    code = (
        "import sys; from grpo_tir import cli\n"
        "for arguments in ([], ['--help'], ['--version'], ['train', '--help'], ['eval', '--help'],"
        " ['solve', '-h'], ['data', 'check', '-h'], ['nonsense']):\n"
        "    try:\n"
        "        cli.main(arguments)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'sympy', 'docker', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
