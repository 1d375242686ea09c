"""Compute the metrics of a training step. Every metric name is made in this module.

    RUN/config.yaml  metadata.json            the resolved recipe; versions, executor, isolation
    RUN/metrics.jsonl                         one object per step
    RUN/problem_rewards.jsonl                 rewards of each problem in each step, which LIMR scores
    RUN/rollouts/step_000012.jsonl            complete trajectories
    RUN/tensorboard/
    RUN/checkpoints/  journal/  alive/        written by checkpoint/ and distributed/watchdog.py

A metric that TRL also has keeps TRL's name; `tools/*` are additions. docs/metrics.md defines each metric. A ratio
with denominator 0 is null; only `update_metrics` returns 0 if nothing was trained.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grpo_tir.grading.extract import extract_answer
from grpo_tir.learning.advantages import is_flat
from grpo_tir.tools.formats import native_calls, written_calls
from grpo_tir.tools.python import OUTPUT_MARKER, code_blocks, error_line
from grpo_tir.types import Rollout, stamp

if TYPE_CHECKING:
    from grpo_tir.engine.choose_step import Choice

BOX = "\\boxed"
MAX_SOURCES = 12
"""Largest number of sources for which metrics are also computed source by source."""


def summarize(rollout: Rollout, max_tool_calls: int) -> dict[str, Any]:
    """Summarize one rollout as the numbers that the metrics need. Ranks exchange only these summaries."""
    model, tool = ([s.text for s in rollout.segments if s.kind == kind] for kind in ("model", "tool"))
    executed = [call.result for call in rollout.calls if call.result is not None]
    return {
        "group": rollout.group,
        "problem_id": rollout.problem.id,
        "source": rollout.problem.source,
        "valid": rollout.valid,
        "reward": rollout.reward.value if rollout.reward else None,
        "correct": rollout.reward.parts.get("correct") if rollout.reward else None,
        "rounded": rollout.reward is not None and "rounded" in rollout.reward.parts,
        "prompt": len(rollout.prompt_ids),
        "length": len(rollout.token_ids),
        "trained": rollout.trained,
        "crc": stamp("all", rollout.token_ids).crc,
        "tool_tokens": len(rollout.token_ids) - sum(rollout.loss_mask),
        "versions": sum(rollout.versions),
        "cut": rollout.finish_reason == "length",
        "lost": rollout.finish_reason == "aborted",
        "calls": len(rollout.calls),
        "no_code_calls": sum(call.result is None for call in rollout.calls),
        # a call in a format of the user's own is known only by its result
        "written": max(sum(len(written_calls(text)) for text in model), len(executed)),
        "before_answer": _blocks_before_answer(model),
        "executed": len(executed),
        "by_tool": [(result.tool, result.status == "ok") for result in executed if result.tool],
        "replay_differs": sum(result.replay_differs > 0 for result in executed),
        "passed": sum(result.status == "ok" for result in executed),
        "wait": sum(call.seconds for call in rollout.calls),
        "wanted_after_limit": _wanted_after_limit(rollout, model, max_tool_calls),
        "fake_outputs": fake_outputs(model, tool, len(rollout.calls)),
        "failed": sum(call.failed for call in rollout.calls),
        "recovered": _recovered(rollout),
        "contradicts": _contradicts(rollout, model),
        "outages": sum(result.status == "infrastructure" for result in executed),
        "errors": [error_line(r).split(":")[0] for r in executed if r.status not in ("ok", "infrastructure")],
    }


def fake_outputs(model: Sequence[str], tool: Sequence[str], calls: int) -> int:
    """Count output blocks that the model opened and filled itself. Each of its first `calls` turns has one marker
    of its call, unless the tool's texts begin with it (`tool.format: fence`)."""
    if tool and tool[0].lstrip("\n").startswith(OUTPUT_MARKER):
        calls = 0
    return sum(
        max(0, text.count(OUTPUT_MARKER) - (number < calls)) + text.count("<tool_response>")
        for number, text in enumerate(model)
    )


def contradicts(answer: str | None, status: str | None, stdout: str) -> bool | None:
    """True if the output of the last call does not contain the final answer. None if either is missing."""
    if not answer or status != "ok" or not stdout.strip():
        return None
    return answer.replace(" ", "") not in stdout.replace(" ", "")


def _wanted_after_limit(rollout: Rollout, model: Sequence[str], limit: int) -> int:
    """Count calls after the last allowed one."""
    if len(rollout.calls) < limit:
        return 0
    native = sum(len(native_calls(text)) for text in model)
    if native:
        return max(0, native - len(rollout.calls))
    return len(code_blocks(model[-1])) if len(model) > len(rollout.calls) else 0


def step_metrics(summaries: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Compute the metrics of a rollout batch from the summaries of all ranks."""
    # 1. Group the rewards, and the checksums of the responses, of valid rollouts.
    rows = [row for row in summaries if row["valid"]]
    groups: dict[int, list[float]] = {}
    responses: dict[int, set[int]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["reward"])
        responses.setdefault(row["group"], set()).add(row["crc"])
    spreads = [statistics.stdev(rewards) if len(rewards) > 1 else 0.0 for rewards in groups.values()]
    finished = [row["length"] for row in rows if not row["cut"]]
    # 2. Average over rollouts or groups. Lost and unjudged rollouts are counted only.
    metrics: dict[str, float | None] = {
        "reward": _mean(row["reward"] for row in rows),
        "reward_std": _mean(spreads),
        "frac_reward_zero_std": _mean(float(is_flat(rewards)) for rewards in groups.values()),
        "accuracy": _mean(row["correct"] for row in rows if row["correct"] is not None),
        "rewards/rounded_ratio": _mean(float(row["rounded"]) for row in rows),
        "completions/mean_length": _mean(row["length"] for row in rows),
        "completions/min_length": min((row["length"] for row in rows), default=None),
        "completions/max_length": max((row["length"] for row in rows), default=None),
        "completions/clipped_ratio": _mean(float(row["cut"]) for row in rows),
        "completions/mean_terminated_length": _mean(finished),
        "rollouts/distinct_ratio": _mean(
            len(responses[group]) / len(rewards) for group, rewards in groups.items()
        ),
        "rollouts/sampled": float(len(summaries)),
        "rollouts/lost": float(sum(row["lost"] for row in summaries)),
        "rollouts/unjudged": float(sum(not row["valid"] and not row["lost"] for row in summaries)),
    }
    outages = {"tools/outages": float(sum(row["outages"] for row in summaries))}
    return {**metrics, **tool_metrics(rows), **outages, **source_metrics(rows)}


def update_metrics(totals: Mapping[str, float], updates: int, learning_rate: float) -> dict[str, float]:
    """Compute the metrics of `updates` optimizer steps from the sums of all ranks (`UpdateStatistics`)."""
    tokens, steps, responses = (max(totals[name], 1.0) for name in ("tokens", "steps", "responses"))
    metrics = {
        "loss": totals["loss"] / updates,
        "grad_norm": totals["grad_norm"] / steps,
        "learning_rate": learning_rate,
        "entropy": totals["entropy"] / tokens,
        "clip_ratio/low_mean": totals["clipped_low"] / tokens,
        "clip_ratio/high_mean": totals["clipped_high"] / tokens,
        "clip_ratio/region_mean": (totals["clipped_low"] + totals["clipped_high"]) / tokens,
        "sampling/sampling_logp_difference/mean": totals["gap"] / tokens,
        "sampling/sampling_logp_difference/max": totals["gap_max"],
        "sampling/sequence_ratio_far": totals["far"] / responses,
        "certificate/used": totals["tolerance_used"],
        "skipped_updates": totals["skipped"],
    }
    if "kl" in totals:
        metrics["kl"] = totals["kl"] / tokens
    if "opens" in totals:
        metrics["tools/call_probability"] = totals["opens"] / responses
    if "masked" in totals:
        metrics["sampling/sequence_masked"] = totals["masked"] / responses
    return metrics


def carry_metrics(summaries: Sequence[dict[str, Any]], step: int, carried: int) -> dict[str, float | None]:
    """Return the number of groups carried over, and the mean age of trained model tokens in steps."""
    rows = [row for row in summaries if row["trained"]]
    tokens = _total(rows, "length") - _total(rows, "tool_tokens")
    age = _share(step * tokens - _total(rows, "versions"), tokens)
    return {"rollouts/carried": float(carried), "rollouts/staleness": age}


def time_metrics(tokens: int, sampling: float, learning: float, idle: float) -> dict[str, float]:
    """Compute seconds and rates of one training step.

    Args:
        tokens: number of response tokens of all ranks.
        idle: seconds of `sampling` in which all rows waited for their tool, mean over the ranks.
    """
    return {
        "time/step": sampling + learning,
        "time/rollout": sampling,
        "time/learn": learning,
        "time/tool_idle": idle,
        "time/rollout_tokens_per_second": tokens / sampling,
        "time/learn_tokens_per_second": tokens / learning,
    }


def decode_metrics(choice: "Choice | None") -> dict[str, float | None]:
    """Return what was measured to choose the decode step: milliseconds of a step of each candidate that agrees
    with the eager step, and 1 for the step that is used, 0 for the others."""
    seconds = choice.seconds if choice else {}
    milliseconds: dict[str, float | None] = {f"decode/ms/{mode}": 1e3 * each for mode, each in seconds.items()}
    return milliseconds | {f"decode/used/{mode}": float(choice.mode == mode) for mode in seconds if choice}


def eval_metrics(summaries: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Compute accuracy and tool use on held-out problems. A metric is None if no response could be judged."""
    rows = [row for row in summaries if row["valid"] and row["correct"] is not None]
    tools = tool_metrics(rows)
    return {
        "eval/accuracy": _mean(row["correct"] for row in rows),
        "eval/code_ratio": tools["tools/code_ratio"],
        "eval/pass_ratio": tools["tools/pass_ratio"],
        "eval/unjudged": float(len(summaries) - len(rows)),
        **{f"eval/{name}": value for name, value in source_metrics(rows).items()},
    }


def source_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Compute accuracy and tool use of each `source` of the problems. Empty if all problems have the same source,
    or if there are more than `MAX_SOURCES`."""
    sources = sorted({row.get("source", "") for row in rows})
    metrics: dict[str, float | None] = {}
    for source in sources if 1 < len(sources) <= MAX_SOURCES else []:
        chosen = [row for row in rows if row.get("source", "") == source]
        name = f"by_source/{source or 'none'}"
        metrics[f"{name}/accuracy"] = _mean(row["correct"] for row in chosen if row["correct"] is not None)
        metrics[f"{name}/code_ratio"] = _mean(float(row["written"] > 0) for row in chosen)
        metrics[f"{name}/recovery_ratio"] = _share(_total(chosen, "recovered"), _total(chosen, "failed"))
    return metrics


def tool_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Compute the metrics of the paper's Figure 5, and further metrics of tool use."""
    executed, written = _total(rows, "executed"), _total(rows, "written")
    metrics = {
        "tools/code_ratio": _mean(float(row["written"] > 0) for row in rows),
        "tools/pass_ratio": _share(_total(rows, "passed"), executed),
        "tools/executed_ratio": _share(executed, written),
        "tools/code_before_answer_ratio": _share(_total(rows, "before_answer"), written),
        "tools/recovery_ratio": _share(_total(rows, "recovered"), _total(rows, "failed")),
        "tools/contradiction_ratio": _mean(row["contradicts"] for row in rows if row["contradicts"] is not None),
        "tools/calls_mean": _mean(row["calls"] for row in rows),
        "tools/no_code_calls": _total(rows, "no_code_calls"),
        "tools/wanted_after_limit": _total(rows, "wanted_after_limit"),
        "tools/fake_outputs": _total(rows, "fake_outputs"),
        "tools/replay_differs": _total(rows, "replay_differs"),
        "tools/token_share": _share(_total(rows, "tool_tokens"), _total(rows, "length")),
        "time/tool_wait": _share(_total(rows, "wait"), _total(rows, "calls")),
    }
    for name, flag in (("right", 1.0), ("wrong", 0.0)):
        chosen = [row for row in rows if row["correct"] == flag]
        metrics[f"tools/pass_ratio_{name}"] = _share(_total(chosen, "passed"), _total(chosen, "executed"))
    results: dict[str, list[bool]] = {}
    for name, passed in (result for row in rows for result in row["by_tool"]):
        results.setdefault(name, []).append(passed)
    for name, passes in sorted(results.items()):
        metrics[f"by_tool/{name}/calls"] = float(len(passes))
        metrics[f"by_tool/{name}/pass_ratio"] = _mean(map(float, passes))
    errors = Counter(name if name.isidentifier() else "other" for row in rows for name in row["errors"])
    return {**metrics, **{f"tools/error/{name}": float(number) for name, number in errors.most_common(10)}}


def _recovered(rollout: Rollout) -> int:
    """Count failed calls with a later successful call in the same response."""
    passed = [call.result is not None and call.result.status == "ok" for call in rollout.calls]
    return sum(call.failed and any(passed[n + 1 :]) for n, call in enumerate(rollout.calls))


def _contradicts(rollout: Rollout, model: Sequence[str]) -> bool | None:
    answer = extract_answer(model[-1]) if model else None
    last = rollout.calls[-1].result if rollout.calls else None
    return contradicts(answer, last.status, last.stdout) if last else None


def _blocks_before_answer(model: Sequence[str]) -> int:
    """Count code blocks before the final answer; all blocks if there is no answer."""
    for number in range(len(model) - 1, -1, -1):
        if extract_answer(model[number]) is not None:
            here = written_calls(model[number][: model[number].rfind(BOX)])
            return sum(len(written_calls(text)) for text in model[:number]) + len(here)
    return sum(len(written_calls(text)) for text in model)


def _mean(numbers: Iterable[float]) -> float | None:
    values = list(numbers)
    return statistics.fmean(values) if values else None


def _share(part: float, total: float) -> float | None:
    return part / total if total else None


def _total(rows: Iterable[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows))
