"""Classes are filled evenly."""

from __future__ import annotations

import pytest

from grpo_tir.curation.balance import difficulty_class, water_fill


@pytest.mark.parametrize(
    ("counts", "size", "taken"),
    [
        ({"a": 100, "b": 3}, 13, {"a": 10, "b": 3}),
        ({"a": 5, "b": 5, "c": 5}, 9, {"a": 3, "b": 3, "c": 3}),
        ({"a": 1, "b": 4, "c": 9}, 9, {"a": 1, "b": 4, "c": 4}),
        ({"a": 2, "b": 2}, 99, {"a": 2, "b": 2}),
        ({"a": 5, "b": 5}, 5, {"a": 3, "b": 2}),
        ({"a": 5}, 0, {"a": 0}),
        ({}, 5, {}),
    ],
)
def test_rare_classes_are_taken_whole_and_frequent_ones_cut(
    counts: dict[str, int], size: int, taken: dict[str, int]
) -> None:
    assert water_fill(counts, size) == taken


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.0, "0.0-0.1"), (0.37, "0.3-0.4"), (0.3, "0.3-0.4"), (1.0, "0.9-1.0"), ("0.25", "0.2-0.3"),
        ("3", "3"), ("1", "1"), (7.5, "7"), ("Level 5", "Level 5"), (float("nan"), "unknown"),
    ],
)  # fmt: skip
def test_difficulty_is_a_tenth_a_level_or_a_label(value: str | float, label: str) -> None:
    assert difficulty_class(value) == label
