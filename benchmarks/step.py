"""Compare a training step, rollouts and update, with that of TRL 1.16, for the same model, sequences and tool.

    python benchmarks/step.py [--prompts 8] [--samples 8] [--repeats 3] [--threads 1] [--latency 0.2]

Workload: that of `rollout.py`: fixed lengths with a long tail from 30 to 400, one tool call per sequence that
takes 200 ms and inserts 20 tokens. 26.5M parameters, fp32, AdamW, no KL, one update. Rewards alternate and take no
time. There is no text, so no tokenizer, template or grader is measured.

Setup of TRL; where there was a choice, the one in its favour:
  loop          `GRPOTrainer._generate`, `_tool_call_loop` and `_compute_loss` unchanged. Only text is replaced:
                prompts are ids, a call is a `tool_calls` entry, the inserted tokens are given.
  trl hf        `model.generate`; a criterion stops each sequence at its fixed length (TRL itself cuts after EOS).
  trl cb        `use_transformers_continuous_batching`; TRL's call of `generate_batch` is made request by request,
                so that each sequence can have its own length; best page size and batch tokens of `rollout.py`.
  batches       --micro-batch sequences; gradient checkpointing off; fp32.
  scoring       without Triton TRL scores all positions of prompt and response; with it, fewer.
TRL runs its tools one after another: 64 x 200 ms. An asynchronous tool does not change this, because the loop
awaits each sequence in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import trl.trainer.grpo_trainer as grpo_trainer  # type: ignore[import-untyped]
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteriaList,
)
from trl import GRPOConfig, GRPOTrainer
from workload import (
    INSERTED,
    After,
    Answer,
    Cost,
    Row,
    RowBudget,
    alternate,
    make_rows,
    print_table,
    random_model,
    run_engine,
)

from grpo_tir.config import Config, ExecutorConfig, OptimConfig, RolloutConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.executor.open import open_executor
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.learning.learner import Learner
from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup, Segment

LR = 1e-6


def our_step(model: PreTrainedModel, rows: list[Row], samples: int, call: Callable[[], Answer]) -> None:
    """Run rollouts by the engine and one update by the learner."""
    engine = run_engine(model, rows, call)
    rollouts = []
    for number, row in enumerate(rows):
        rollout = Rollout(Problem(str(number // samples), "", ""), row.prompt, group=number // samples)
        for stop in engine.said[number]:
            if rollout.segments:
                rollout.add(Segment("tool", INSERTED))
            rollout.add(Segment("model", stop.token_ids, stop.logprobs))
        rollout.reward = Reward(float(number % 2) * 2 - 1)
        rollouts.append(rollout)
    groups = [
        RolloutGroup(rollouts[i].problem, rollouts[i : i + samples]) for i in range(0, len(rollouts), samples)
    ]
    config = Config(
        rollout=RolloutConfig(samples_per_prompt=samples), optim=OptimConfig(lr=LR, micro_batch_tokens=2048)
    )
    assign_advantages(groups, config.algorithm)
    learner = Learner(Runtime("fp32"), model, config)
    with learner.updating(0):
        for batch in learner.mini_batches(groups):
            learner.backward(batch)
            learner.step(batch)
    metrics = learner.report()
    assert metrics["grad_norm"] > 0 and metrics["skipped_updates"] == 0


class TRL(GRPOTrainer):  # type: ignore[misc]
    """Subclass TRL's trainer: ids instead of text, and fixed lengths instead of EOS."""

    rows: list[Row]
    turn = 0

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self.turn = 0
        return [list(row.prompt) for row in self.rows], None, {}

    def _get_tool_suffix_ids(self, tool_messages: list[Any]) -> list[int]:
        return list(INSERTED)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any, **more: Any) -> Any:
        wanted = [row.parts[self.turn] for row in self.rows]
        self.turn += 1
        if self.use_transformers_continuous_batching:
            return self._continuous(prompt_ids, wanted), None
        generate, width = self.model.generate, max(map(len, prompt_ids))
        stop = StoppingCriteriaList([RowBudget([width + count for count in wanted])])
        config = copy.deepcopy(self.generation_config)
        config.max_new_tokens = max(wanted)
        self.model.generate = lambda generation_config, **inputs: generate(
            **inputs, generation_config=config, stopping_criteria=stop
        )
        try:
            ids, logprobs = super()._generate_single_turn(prompt_ids, *rest, **more)
        finally:
            self.model.generate = generate
        return [row[:count] for row, count in zip(ids, wanted, strict=True)], logprobs

    def _continuous(self, prompt_ids: list[list[int]], wanted: list[int]) -> list[list[int]]:
        """Replace `generate_batch`, so that each request has its own length."""
        theirs, out = self.model.config._attn_implementation, {}
        longest = max(len(ids) + count for ids, count in zip(prompt_ids, wanted, strict=True))
        config = ContinuousBatchingConfig(
            page_size=32,
            num_blocks=len(prompt_ids) * (longest // 32 + 2),
            max_batch_tokens=512,
            max_requests_per_batch=len(prompt_ids),
        )
        sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=400, eos_token_id=-1, pad_token_id=0)
        self.model.eval()
        with (
            torch.no_grad(),
            self.model.continuous_batching_context_manager(sampling, True, 5, config, warmup=False) as manager,
        ):
            for number, (ids, count) in enumerate(zip(prompt_ids, wanted, strict=True)):
                manager.add_request(ids, str(number), max_new_tokens=count)
            while len(out) < len(prompt_ids):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    out[int(result.request_id)] = result.generated_tokens
        self.model.config._attn_implementation = theirs
        self.model.train()
        return [list(out[number]) for number in range(len(prompt_ids))]


@contextmanager
def scripted_calls(trainer: TRL, calls: int) -> Iterator[None]:
    """Return a tool call for every sequence in its first `calls` turns."""
    theirs = grpo_trainer.parse_response

    def parse(*_: Any, **__: Any) -> dict[str, Any]:
        wanted = [{"type": "function", "function": {"name": "tool", "arguments": {}}}]
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        return {**message, "tool_calls": wanted} if trainer.turn <= calls else message

    grpo_trainer.parse_response = parse
    try:
        yield
    finally:
        grpo_trainer.parse_response = theirs


TEMPLATE = """{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% for c in m['tool_calls'] or [] %}
{{ c['function']['name'] }} {{ c['function']['arguments'] }}{% endfor %} end {% endfor %}"""


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer of the model's vocabulary size; the workload never uses it."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, size)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = {"defaults": {"role": "assistant"}, "fields": {}}
    return tokenizer


def trl_step(
    model: PreTrainedModel, rows: list[Row], samples: int, latency: float, continuous: bool, micro_batch: int
) -> None:
    """Run one step of TRL's trainer."""

    def tool() -> str:
        """Wait as long as the tool takes."""
        time.sleep(latency)
        return ""

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float(number % 2) * 2 - 1 for number in range(len(completions))]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, max_steps=1, learning_rate=LR, per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=len(rows) // micro_batch, num_generations=samples,
            max_completion_length=600, temperature=1.0, top_p=1.0, top_k=0, beta=0.0, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, use_transformers_continuous_batching=continuous,
        )  # fmt: skip
        prompts = [{"prompt": [{"role": "user", "content": str(i)}]} for i in range(len(rows) // samples)]
        trainer = TRL(model, reward, config, Dataset.from_list(prompts),
                      processing_class=word_tokenizer(model.config.vocab_size), tools=[tool])  # fmt: skip
        trainer.rows = rows
        with scripted_calls(trainer, len(rows[0].parts) - 1):
            trainer.train()
        assert trainer.turn == len(rows[0].parts)


def fresh(step: Callable[[PreTrainedModel], None]) -> Callable[[], None]:
    """Make the model anew for each run, so that each starts from the same weights."""
    return lambda: step(random_model())


def against_trl(args: argparse.Namespace) -> dict[str, float]:
    """Measure the step of each trainer, in turns."""
    rows = make_rows(args.prompts, args.samples)
    workload = (rows, args.samples, args.latency)
    candidates = {
        "ours": fresh(lambda model: our_step(model, rows, args.samples, partial(After, args.latency))),
        "trl cb": fresh(lambda model: trl_step(model, *workload, True, args.micro_batch)),
        "trl hf": fresh(lambda model: trl_step(model, *workload, False, args.micro_batch)),
    }
    costs = alternate({name: candidates[name] for name in args.only or candidates}, args.repeats)
    ours = costs.get("ours", Cost(float("nan"), float("nan")))
    print_table(
        f"Step of {len(rows)} rows",
        ["", "wall s", "CPU-s", "x ours, wall", "x ours, CPU"],
        [[name, cost.wall, cost.cpu, cost.wall / ours.wall, cost.cpu / ours.cpu] for name, cost in costs.items()],
    )
    return {f"step_vs_{name.replace(' ', '_')}": c.wall / ours.wall for name, c in costs.items() if c is not ours}


def cost_of_calls(args: argparse.Namespace) -> dict[str, float]:
    """Measure what waiting for c calls adds to our step, relative to the same insertions without waiting: for a
    tool of fixed latency, and for the real executor, with the CPU time of its processes."""
    result: dict[str, float] = {}
    with open_executor(ExecutorConfig(kind=args.executor)) as executor:

        def run_code() -> Answer:
            return executor.submit("print(sum(n * n for n in range(1000)))")

        for calls in (1, 2):
            rows = make_rows(args.prompts, args.samples, calls)
            tools: dict[str, Callable[[], Answer]] = {
                "insertions at once": partial(After, 0.0),
                f"{args.latency} s a call": partial(After, args.latency),
                f"executor ({args.executor})": run_code,
            }
            costs = alternate(
                {
                    name: fresh(lambda model, tool=tool, rows=rows: our_step(model, rows, args.samples, tool))
                    for name, tool in tools.items()
                },
                args.repeats,
            )
            at_once, waiting, real = costs.values()
            print_table(
                f"Step with c = {calls}", ["", "wall s", "CPU-s"], [[n, c.wall, c.cpu] for n, c in costs.items()]
            )
            result |= {
                f"c{calls}_over_c0": waiting.wall / at_once.wall,
                f"c{calls}_over_c0_cpu": waiting.cpu / at_once.cpu,
                f"c{calls}_over_c0_executor": real.wall / at_once.wall,
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"prompts": 8, "samples": 8, "repeats": 3, "threads": 1, "micro-batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that a tool takes")
    parser.add_argument("--executor", default="process", choices=["docker", "process"])
    parser.add_argument("--only", nargs="*", default=None, help="candidates to run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = against_trl(args)
    if not args.only:
        result |= cost_of_calls(args)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
