"""Function as a tool of qwen3_tool_call, and a reward that reads its calls: yes-or-no questions about a database.

--tool.names '[recipes/custom/database.py:query]' --reward.function recipes/custom/database.py:evidence
"""

import contextlib
import re
import sqlite3

from grpo_tir import Problem, Reward, Rollout


def query(sql: str) -> list:
    """Run an SQL query on the table `interactions`.

    Args:
        sql: The query. The database is read-only.
    """
    with contextlib.closing(sqlite3.connect("file:biogrid.db?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()


def evidence(problem: Problem, rollout: Rollout) -> Reward:
    """Reward *yes* or *no* if it is right, and 0.5 more if the rows that the queries found support it."""
    said = re.findall(r"\*(yes|no)\*", rollout.model_text.lower())
    correct = float(said[-1:] == [problem.answer.lower()])
    found = any(call.result and call.result.stdout not in ("", "[]") for call in rollout.calls)
    supported = float(bool(rollout.calls) and found == (problem.answer.lower() == "yes"))
    return Reward(correct + 0.5 * supported, {"correct": correct, "supported": supported})
