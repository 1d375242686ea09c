"""ZeRO-3 from rollout to checkpoint: two "nodes" on this machine are one node, which is one process."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training_run import finish, launcher, metrics_without_time, prepare, start, weights_hash

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test EXTRAS=dev,deepspeed")

OPTIONS = (
    "--optim.lr 1e-4 --rollout.prompts_per_step 3 "
    "--data.eval held_out.jsonl --train.eval_every 2 --train.eval_size 3"
).split()
"""Three problems for two ranks: one has twice the rollouts of the other, in training and in evaluation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("nodes"))


def run(folder: Path, name: str, steps: int, *more: str, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    arguments = ("--train.output_dir", name, "--train.steps", str(steps), *OPTIONS, *more)
    return start(folder, *arguments, launcher=(*launch, "-m", "grpo_tir"))


def check(process: subprocess.Popen[str]) -> str:
    code, out, err = finish(process)
    assert code == 0, out + err
    return out


@pytest.fixture(scope="module")
def one_node(folder: Path) -> Path:
    """Three steps by two processes."""
    out = check(run(folder, "one_node", 3, launch=launcher("zero3")))
    assert out.count("2 processes") == 1 and out.count("saved") == 3
    assert "generator" not in out, "the engine was refused"
    return folder / "one_node"


def test_two_nodes_resumed_on_one_equal_one_node(folder: Path, one_node: Path) -> None:
    """To the last bit, in weights and metrics, and so does what one node makes of the two nodes' checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = [
        run(folder, "nodes", 2, launch=launcher("zero3_multinode", port, "--machine_rank", str(rank)))
        for rank in (0, 1)
    ]
    for node in nodes:
        check(node)
    assert "resuming after step 2" in check(run(folder, "nodes", 3, "--resume", launch=launcher("zero3")))
    assert metrics_without_time(folder / "nodes") == metrics_without_time(one_node)
    for step in (1, 2, 3):
        path = f"checkpoints/step_{step:06d}"
        assert weights_hash(folder / "nodes" / path) == weights_hash(one_node / path)


def test_sharded_run_equals_one_process(folder: Path, one_node: Path) -> None:
    check(run(folder, "alone", 3))
    for ours, theirs in zip(metrics_without_time(one_node), metrics_without_time(folder / "alone"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"certificate/used"}:  # rounding itself, on a scale of its own
            same = ours[name] == theirs[name]  # null, too
            assert same or ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    sharded, alone = (
        torch.cat([tensor.flatten().double() for _, tensor in sorted(load_file(path).items())])
        for path in (run / "checkpoints/step_000003/model.safetensors" for run in (one_node, folder / "alone"))
    )
    assert (sharded - alone).norm() / alone.norm() < 1e-5
