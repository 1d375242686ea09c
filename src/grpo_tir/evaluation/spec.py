"""Benchmarks, evaluated so that the result can be repeated and believed: `grpo-tir eval`.

benchmarks ──► waves of fixed rows ──► rollouts, graded ──► journal ──► scores ──► table, results.json, results.md
                 (run)                                     (journal)   (scores)    (card)
"""

from __future__ import annotations

from dataclasses import dataclass

from grpo_tir.config import Config


@dataclass(frozen=True)
class EvalSpec:
    """One model with one prompt, under one or several conditions of its tool."""

    model: str
    prompt: str
    """As it was named: `base`, `instruct`, `tir`, or a data.template."""
    config: Config
    conditions: tuple[str, ...]
    """Of `tool`, `no tool`, `blanked`, `shuffled`, in this order."""
