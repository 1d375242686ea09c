"""Check one recorded response against mask, model and executor: `grpo-tir replay RUN STEP SAMPLE`.

    ids and mask    compare the stamps made while sampling with the recorded ids (the token certificate)
    log-probs       recompute them with the weights that sampled: the checkpoint of the step before, or the base
                    model for step 1. Left out with a message if there is no such checkpoint
    code            run it again in the recipe's executor and compare the outputs

Outputs of programs that read the clock or draw random numbers without a seed differ without a fault. Exit code: 0
equal, 1 different.
"""

import difflib
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.errors import CertificateError, DataError
from grpo_tir.learning.certificate import SINGLE, check_tokens
from grpo_tir.types import Problem, Rollout, Segment, Stamp, ToolCall, ToolResult
from grpo_tir.utils.files import read_jsonl


def find_record(run_dir: Path, step: int, sample: str) -> dict[str, Any]:
    """Find one trajectory, by `GROUP.SAMPLE` or by its line number.

    Raises:
        DataError: it was not recorded; the message lists the recorded ones.
    """
    path = run_dir / "rollouts" / f"step_{step:06d}.jsonl"
    records = read_jsonl(path)
    if not records:
        steps = [int(file.stem.removeprefix("step_")) for file in sorted(path.parent.glob("step_*.jsonl"))]
        raise DataError(f"no trajectories of step {step} in {path.parent}; recorded: {_brief(steps) or 'none'}")
    names = {f"{record['group']}.{record['sample']}": record for record in records}
    if sample in names:
        return names[sample]
    if sample.isdigit() and 1 <= int(sample) <= len(records):
        return records[int(sample) - 1]
    known = _brief(list(names))
    raise DataError(
        f"no sample {sample} in {path}: give GROUP.SAMPLE ({known}) or a line from 1 to {len(records)}"
    )


def to_rollout(record: dict[str, Any]) -> Rollout:
    """Rebuild the rollout that `run_log.trajectory` recorded."""
    problem = Problem(record["problem_id"], record["problem"], record["answer"])
    segments = [
        Segment(s["kind"], s["token_ids"], s["logprobs"], s["text"], s.get("versions", []))
        for s in record["segments"]
    ]
    stamps = [Stamp(*piece) for piece in record["stamps"]]
    rollout = Rollout(problem, record["prompt_ids"], record["group"], record["sample"], segments, stamps=stamps)
    rollout.finish_reason = record["finish_reason"]
    return rollout


def check_stamps(rollout: Rollout) -> bool:
    """Check the recorded ids and the mask with the token certificate."""
    prompt, mask = len(rollout.prompt_ids), rollout.loss_mask
    try:
        ids = rollout.prompt_ids + rollout.token_ids
        check_tokens(rollout.stamps, prompt, ids, [0] * prompt + mask, "this record")
    except CertificateError as error:
        print(f"ids and mask   VIOLATED: {error}")
        return False
    print(f"ids and mask   as sampled: {sum(mask)} tokens trained, {len(mask) - sum(mask)} of the tool masked")
    return True


def check_model(run_dir: Path, step: int, rollout: Rollout, config: Config) -> bool:
    """Compare the recorded log-probs with those of the weights that sampled."""
    checkpoint = run_dir / "checkpoints" / f"step_{step - 1:06d}"
    if step > 1 and not checkpoint.is_dir():
        print(
            f"log-probs      not recomputed: there is no {checkpoint} (train.save_every, train.save_total_limit)"
        )
        return True
    from grpo_tir.diagnostics.model import logprob_gaps
    from grpo_tir.distributed.runtime import Runtime
    from grpo_tir.rollouts.policy import load_policy

    rollout.stamps = []  # checked by `check_stamps`
    runtime = Runtime(config.model.precision)
    policy = load_policy(config, str(checkpoint) if step > 1 else config.model.path, runtime.device)
    found, tolerance = logprob_gaps(policy, [rollout], runtime, config)
    versions = [v for v, trained in zip(rollout.versions, rollout.loss_mask, strict=True) if trained]
    gaps = {n: gap for n, (gap, drawn) in enumerate(zip(found.tolist(), versions)) if drawn in (0, step)}
    if not gaps:
        print("log-probs      none: these weights wrote nothing")
        return True
    mean, worst = sum(gaps.values()) / len(gaps), max(gaps, key=gaps.__getitem__)
    fine = mean <= SINGLE * tolerance
    print(
        f"log-probs      {'agree' if fine else 'VIOLATED'}: {mean:.2g} nats a token on average, at most "
        f"{gaps[worst]:.2g} (model token {worst}); {SINGLE * tolerance:g} is allowed on average in one response"
    )
    return fine


def check_code(record: dict[str, Any], config: Config) -> bool:
    """Run every program of the response again and compare the outputs."""
    calls = [call for call in record["calls"] if call.get("code") is not None]
    if not calls:
        print("code           none was run")
        return True
    from grpo_tir.tools.open import open_tool
    from grpo_tir.tools.protocol import open_session

    tool = open_tool(config, print)
    assert tool is not None, "a recorded call needs a tool in the recipe"
    try:
        rollout = Rollout(Problem("", "", ""), [])
        session, results = open_session(tool, rollout), list[ToolResult]()
        for call in calls:
            results.append(session.submit(call["code"]).result())
            rollout.calls.append(ToolCall(call["code"], results[-1]))
    finally:
        tool.close()
    fine = True
    for number, (call, result) in enumerate(zip(calls, results, strict=True), start=1):
        difference = compare(call, result)
        fine = fine and not difference
        print(
            f"code {number} of {len(calls)}    " + (f"DIFFERS: now {result.status}" if difference else "the same")
        )
        for line in difference:
            print(f"    {line}")
    return fine


def compare(call: dict[str, Any], result: ToolResult) -> list[str]:
    """Return a diff between the recorded and the new run: status, stdout, last line of stderr. The lines above it
    name files of the executor; the model does not see them either."""
    from grpo_tir.tools.python import error_line

    then = ToolResult(call["status"], call["stdout"], call["stderr"], call["exit_code"], call["signal"])
    old, new = (
        [f"status: {one.status}", *one.stdout.splitlines(), *([error_line(one)] if one.status != "ok" else [])]
        for one in (then, result)
    )
    return list(difflib.unified_diff(old, new, "recorded", "now", lineterm="", n=1))


def _brief(names: list[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "…", *shown[-2:]])
