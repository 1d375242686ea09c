"""The plan against the peak memory of real sampling and real updates, in a process of their own on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = '''
import gc, json, random, sys
from pathlib import Path
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.generation.protocol import Request
from grpo_tir.engine.engine import Engine
from grpo_tir.generation.sampling import Sampling
from grpo_tir.learning.learner import Learner
from grpo_tir.diagnostics.memory import Hardware, Shape, plan
from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup, Segment
from tiny_policy import change, update
from grpo_tir.config import Config

checkpointing = sys.argv[1] == "again"
V, PROMPT, COMPLETION, ROWS = 6000, 488, 24, 24  # the prompt fills the cache in few forwards
LEARNED = 384  # of the same 512 tokens
config = change(Config(), data__max_prompt_length=PROMPT, rollout__max_completion_length=COMPLETION)
config = change(config, rollout__prompts_per_step=ROWS // 2, rollout__samples_per_prompt=2)
config = change(config, optim__micro_batch_tokens=1024, optim__logits_mb=10)
config = change(config, model__gradient_checkpointing=checkpointing)

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def peak_of(act):
    """Highest resident memory while it runs; the kernel's mark is set back first."""
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    act()
    return status("VmHWM")

def build(hidden, layers):
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=V, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1,
    ))
    if checkpointing:
        model.activation_checkpointing_enable()
    return model, Learner(runtime, model, config)

def ids(n):
    return [random.randrange(V) for _ in range(n)]

def sample(model):
    engine = Engine(model.eval(), None, Sampling(), [V + 1])
    for row in range(ROWS):
        engine.submit(Request(row, ids(PROMPT), row, COMPLETION, False))
    ended = 0
    while ended < ROWS:
        ended += len(engine.step())
    engine.close()

def learn(learner):
    groups = []
    for i in range(2):
        prompt, problem, rollouts = ids(512 - LEARNED), Problem(str(i), "", ""), []
        for sign in (1.0, -1.0):
            said = Segment("model", ids(LEARNED), [-8.7] * LEARNED)
            rollout = Rollout(problem, prompt, group=i, segments=[said], finish_reason="eos")
            rollout.reward, rollout.advantage = Reward(1.0, {}), sign
            rollouts.append(rollout)
        groups.append(RolloutGroup(problem, rollouts))
    update(learner, groups, 0, Path("dump"))

runtime = Runtime("fp32")
torch.set_num_threads(1)
tiny, learner = build(16, 1)
learn(learner), sample(tiny)  # the libraries load what they need: that is no part of the plan
del tiny, learner
gc.collect()
before = status("VmRSS")
model, learner = build(256, 8)
learn(learner)  # the moments are made in the first step
phases = {"learning": lambda: learn(learner), "sampling": lambda: sample(model)}
measured = {name: peak_of(act) - before for name, act in phases.items()}
size = sum(parameter.numel() for parameter in model.parameters())
found = plan(config, Shape(size, 8, 256, 768, 256, V), Hardware(1, 8e9, cpu=True))
print(json.dumps({
    phase: [measured[phase], sum(size for part, size in getattr(found, phase).items() if part != "runtime")]
    for phase in measured
}))
'''


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to see a peak")
@pytest.mark.parametrize("activations", ["kept", pytest.param("again", marks=pytest.mark.slow)])
def test_measured_peaks_are_within_a_quarter_of_the_plan(activations: str, tmp_path: Path) -> None:
    """Freed memory is given back at once (malloc's thresholds), or the process would look larger than it is."""
    malloc = {f"MALLOC_{name}_": "131072" for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD")}
    paths = os.pathsep.join(str(Path(__file__).resolve().parents[i] / part) for i, part in ((2, ""), (3, "src")))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, activations],
        env={**os.environ, **malloc, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for phase, (measured, planned) in json.loads(done.stdout.splitlines()[-1]).items():
        assert 0.75 < measured / planned < 1.25, f"{phase}: measured {measured:,}, planned {planned:,.0f}"
