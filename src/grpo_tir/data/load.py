"""Read the problems that a recipe names, and leave out those with long prompts."""

from collections.abc import Callable
from typing import Any

from grpo_tir.config import Config
from grpo_tir.data.problems import load_problems
from grpo_tir.data.prompts import Renderer
from grpo_tir.data.tokens import encode
from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils.objects import Objects, as_problems


def read_all_problems(
    config: Config,
    log: Callable[[str], None],
    given: Objects = Objects(),  # noqa: B008 (frozen)
) -> tuple[list[Problem], list[Problem]]:
    """Read training and held-out problems. Call before loading the model, because bad data fails faster.

    Raises:
        DataError: a row cannot be used and `on_bad` is `stop`, or a file cannot be read.
    """
    if given.problems is not None:
        train = as_problems(given.problems, config, "problems")
    else:
        train = read_problems(config, config.data.train, log)
    if given.eval_problems is not None:
        held_out = as_problems(given.eval_problems, config, "eval_problems")
    else:
        held_out = read_problems(config, config.data.eval, log) if config.data.eval else []
    return train, held_out[: config.train.eval_size or None]


def read_problems(config: Config, path: str, log: Callable[[str], None]) -> list[Problem]:
    """Read the problems of a file, and log how many rows were skipped."""
    names = ("problem_field", "answer_field", "id_field", "on_bad")
    problems, skipped = load_problems(path, **{name: getattr(config.data, name) for name in names})
    if skipped:
        log(f"{path}: {len(skipped)} rows skipped, the first: {skipped[0]}")
    return problems


def keep_fitting(
    train: list[Problem], config: Config, tokenizer: Any, render: Renderer, log: Callable[[str], None]
) -> list[Problem]:
    """Return the problems whose prompts are short enough; log the number of the others.

    Raises:
        DataError: no problem is short enough.
    """
    lengths = [len(encode(tokenizer, render(p))) for p in train]
    limit = config.data.max_prompt_length
    fitting = [p for p, length in zip(train, lengths, strict=True) if length <= limit]
    if len(fitting) < len(train):
        log(f"{len(train) - len(fitting)} of {len(train)} problems left out: prompts over data.max_prompt_length")
    if not fitting:
        raise DataError(
            f"{config.data.train}: no problem is short enough: the shortest prompt has "
            f"{min(lengths, default=0)} tokens, data.max_prompt_length is {limit}"
        )
    return fitting
