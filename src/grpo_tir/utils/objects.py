"""Use Python objects instead of the problems, functions and models that a recipe names by strings."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from grpo_tir.config import Config, change
from grpo_tir.errors import ConfigError, DataError
from grpo_tir.types import Problem

TOOL_METHODS = ("find_call", "submit", "observe", "close")


@dataclasses.dataclass(frozen=True)
class Objects:
    """Hold the objects passed to `Trainer`. None means the one that the recipe names."""

    problems: Iterable[Any] | None = None
    eval_problems: Iterable[Any] | None = None
    reward: Any = None
    tool: Any = None
    model: Any = None
    tokenizer: Any = None

    def named_in(self, config: Config) -> Config:
        """Return the recipe with the name of each object instead of a string, as a record of the run.

        Raises:
            ConfigError: a model without a tokenizer, a reward that is not callable, or a tool that lacks a method.
        """
        if (self.model is None) != (self.tokenizer is None):
            raise ConfigError("Trainer: give model and tokenizer together")
        if self.reward is not None and not callable(self.reward):
            raise ConfigError(f"Trainer: reward is {self.reward!r}; it must be a function of (problem, rollout)")
        if self.tool is not None and (missing := [name for name in TOOL_METHODS if not hasattr(self.tool, name)]):
            raise ConfigError(f"Trainer: the tool {name_of(self.tool)} lacks {', '.join(missing)}")
        given = {
            "data.train": self.problems, "data.eval": self.eval_problems, "reward.function": self.reward,
            "tool.name": self.tool, "model.path": self.model,
        }  # fmt: skip
        return change(config, {name: name_of(value) for name, value in given.items() if value is not None})


def name_of(value: Any) -> str:
    """Return `python object` and the qualified name of a function or class, or of the type of another object."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"python object {named.__module__}.{named.__qualname__}"


def as_problems(items: Iterable[Any], config: Config, argument: str) -> list[Problem]:
    """Convert items to problems. An item is a `Problem`, or a mapping with the columns that `config.data` names.

    Raises:
        DataError: no items, or an item that is neither, named as `argument[number]`.
    """
    data, problems = config.data, []
    for number, item in enumerate(items):
        if isinstance(item, Problem):
            problems.append(item)
        elif isinstance(item, Mapping) and isinstance(item.get(data.problem_field), str):
            if item.get(data.answer_field) is None:
                raise DataError(f"{argument}[{number}] has no `{data.answer_field}`")
            identity = str(item.get(data.id_field, number))
            problems.append(Problem(identity, item[data.problem_field], str(item[data.answer_field])))
        else:
            raise DataError(
                f"{argument}[{number}] is a {type(item).__name__}: give a Problem, or a mapping with "
                f"`{data.problem_field}` and `{data.answer_field}`"
            )
    if not problems:
        raise DataError(f"{argument} is empty")
    return problems
