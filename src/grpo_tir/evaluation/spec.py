"""Describe an evaluation of `grpo-tir eval`: models, prompts, tool conditions and options.

benchmarks ──► waves of rows ──► graded rollouts ──► stored responses ──► scores ──► table, results.json, .md
                 (run)             (held_out)          (responses)       (summary)    (tables)
"""

from dataclasses import dataclass

from grpo_tir.config import Config


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation: sampling and output."""

    samples: int = 1
    """Responses to a problem. More than one are drawn at `rollout.temperature`."""
    sample: bool = False
    """Draw one response instead of decoding it greedily."""
    batch: int = 64
    """Rows that are sampled together."""
    float64: bool = False
    """Compute in float64, so that no greedy response depends on `batch`."""
    compare: str | None = None
    """`paper`: print its Table 3 beside the result."""
    out: str | None = None
    """Folder for responses and results; None: one below runs/eval, named by a hash of what is evaluated."""


@dataclass(frozen=True)
class EvalSpec:
    """One model with one prompt, under one or several conditions of its tool."""

    model: str
    prompt: str
    """Name of the prompt: `base`, `instruct`, `tir`, or a data.template."""
    config: Config
    conditions: tuple[str, ...]
    """Some of `tool`, `no tool`, `blanked`, `shuffled`, in this order."""
