"""The plan against numbers worked by hand, and its advice against itself: what it proposes must fit."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from grpo_tir import cli
from grpo_tir.config import Config
from grpo_tir.diagnostics.memory import GIB, KNOWN, Hardware, Shape, executor_slots, parse_memory, plan, shape_of
from grpo_tir.errors import ConfigError
from tiny_policy import change, save_byte_model

QWEN = Shape(*KNOWN["Qwen2.5-1.5B"])
GPU = Hardware(8, 80e9)


def config(**values: object) -> Config:
    return change(Config(), model__precision="bf16", **values)


@pytest.mark.parametrize(
    "name, published", [("Qwen2.5-0.5B", 0.49e9), ("Qwen2.5-1.5B", 1.54e9), ("Qwen2.5-7B", 7.61e9)]
)
def test_known_shapes_add_up_to_their_published_size(name: str, published: float) -> None:
    """Counted layer by layer: attention with its biases, three matrices of the MLP, norms, embeddings."""
    shape = Shape(*KNOWN[name])
    h, i, kv = shape.hidden, shape.intermediate, shape.kv_width
    layer = (h * h + h) + 2 * (h * kv + kv) + h * h + 3 * h * i + 2 * h
    tied = name != "Qwen2.5-7B"
    counted = shape.layers * layer + h + shape.vocabulary * h * (1 if tied else 2)
    assert counted == shape.parameters == pytest.approx(published, rel=0.01)


def test_the_shape_of_a_model_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    save_byte_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    shape = shape_of(str(tmp_path))
    assert (shape.layers, shape.hidden, shape.intermediate, shape.kv_width) == (2, 32, 64, 2 * 32 // 4)
    layer = (32 * 32 + 32) + 2 * (32 * 16 + 16) + 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert shape.parameters == 2 * layer + 32 + shape.vocabulary * 32


def test_weights_gradients_and_moments_by_hand() -> None:
    size = QWEN.parameters
    alone = plan(config(), QWEN, Hardware(1, 80e9))
    assert alone.learning["optimizer"] == 8 * size and alone.learning["gradients"] == 4 * size
    assert alone.learning["weights"] == (4 + 2) * size, "float32, and the bf16 copy that is decoded from"
    assert plan(config(), QWEN, GPU).learning["gradients"] == 8 * size, "DDP sends them from buckets"
    for stage in (1, 2, 3):
        sharded = plan(config(), QWEN, Hardware(8, 80e9, zero=stage))
        assert sharded.learning["optimizer"] == 12 * size / 8
        bucket = 4 * 5e8
        assert sharded.learning["gradients"] == 4 * size / (1 if stage == 1 else 8) + bucket
    assert sharded.sampling["weights"] == 4 * size / 8 + 2 * size + 1e9, "its part, a bf16 copy, what is gathered"
    rounds = plan(config(rollout__generator="generate"), QWEN, Hardware(8, 80e9, zero=3))
    assert rounds.sampling["weights"] == 4 * size / 8 + 4 * size, "gathered whole"
    assert plan(config(algorithm__kl_coef=0.1), QWEN, GPU).sampling["reference"] == 4 * size


def test_kv_cache_of_the_papers_batch_by_hand() -> None:
    """2048 rows on 8 ranks, 400 + 3072 tokens, 2 x 256 values a layer in bf16. Eager: one layer twice while it
    grows. Static: 28 pages of 128 tokens a row, and the sum with three significant bits."""
    for step, layers, tokens, few in (("eager", 29, 256 * 3472, 10 * 3472), ("auto", 28, 256 * 3584, 5 << 13)):
        found = plan(config(rollout__step=step), QWEN, GPU)
        assert (found.rows, found.row_tokens) == (256, 3472)
        assert found.token_bytes == 2 * 256 * 2 * layers
        assert found.sampling["KV cache"] == tokens * found.token_bytes
        short = plan(config(rollout__step=step, rollout__max_rows=10), QWEN, GPU)
        assert short.sampling["KV cache"] == few * found.token_bytes
        bounded = plan(config(rollout__step=step, rollout__kv_tokens=100_000), QWEN, GPU)
        assert bounded.sampling["KV cache"] == 100_000 * found.token_bytes
        left = 80e9 - sum(bounded.sampling.values()) + bounded.sampling["KV cache"]
        left *= 0.85 if step == "auto" else 1
        assert bounded.rows_that_fit == left // found.token_bytes // 3472


def test_pages_take_what_is_left() -> None:
    """7B under ZeRO-3 on 8 x 80 GB: 256 rows do not fit at their full length, 181 do; the others wait."""
    shape, machine = Shape(*KNOWN["Qwen2.5-7B"]), Hardware(8, 80e9, zero=3)
    found = plan(config(model__gradient_checkpointing=True), shape, machine)
    fixed = sum(found.sampling.values()) - found.sampling["KV cache"]
    assert found.sampling["KV cache"] == pytest.approx(0.85 * (80e9 - fixed))
    assert found.rows_that_fit == 181 and found.need < 80e9
    again = plan(config(model__gradient_checkpointing=True, rollout__step="eager"), shape, machine)
    assert again.need > 80e9


def test_what_costs_time_saves_memory() -> None:
    plain = plan(config(), QWEN, GPU).learning
    again = plan(config(model__gradient_checkpointing=True), QWEN, GPU).learning
    small = plan(config(optim__micro_batch_tokens=4096), QWEN, GPU).learning
    assert again["activations"] < plain["activations"] / 4 and small["activations"] < plain["activations"] / 3
    longer = plan(config(optim__micro_batch_tokens=100), QWEN, GPU).learning
    assert longer == plan(config(optim__micro_batch_tokens=3472), QWEN, GPU).learning, "the longest row goes alone"


def test_executor_slots_by_hand() -> None:
    """2048 calls, 5% of 10 s and the others of 25 ms: 1072.6 s of work within 60 s."""
    assert executor_slots(2048, 10.0) == 18
    assert plan(config(), QWEN, GPU).calls == 2048
    without = plan(config(tool__max_tool_calls=0), QWEN, GPU)
    assert (without.calls, without.slots) == (0, 0)


@pytest.mark.parametrize("text, size", [("80GB", 80e9), ("80 GiB", 80 * GIB), ("24g", 24e9), ("0.5GB", 5e8)])
def test_memory_as_people_write_it(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["80", "eighty", "0GB", "80MB", "-1GB"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 80GB"):
        parse_memory(text)


@pytest.mark.parametrize(
    "arguments",
    [
        ["torl_7b"],
        ["torl_7b", "--zero", "3", "--rollout.kv_tokens", "0", "--rollout.step", "eager"],
        ["torl_7b", "--gpus", "1", "--gpu-memory", "48GB"],
        ["torl_1.5b", "--gpus", "1", "--gpu-memory", "24GB"],
        ["torl_1.5b", "--gpus", "2", "--gpu-memory", "40GB", "--model.gradient_checkpointing", "false"],
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_refused_and_what_is_proposed_instead_fits(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "this does not fit" in line
    proposed = shlex.split(line.partition("the nearest that fits: ")[2])
    assert proposed
    assert cli.main(["plan", *arguments, *proposed]) == 0
    assert "it fits" in capsys.readouterr().out


def test_what_can_never_fit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "torl_7b", "--gpus", "1", "--gpu-memory", "4GB"]) == 2
    assert "no tried change of batch, cache, ZeRO or GPUs fits" in capsys.readouterr().err


def test_the_papers_small_model_fits_its_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "torl_1.5b", "--gpus", "8", "--gpu-memory", "80GB"]) == 0
    said = capsys.readouterr().out
    for word in (
        "weights",
        "gradients",
        "optimizer",
        "KV cache",
        "activations",
        "logits",
        "256 sequences",
        "18 slots",
    ):
        assert word in said
    assert "the others wait" not in said
    assert cli.main(["plan", "torl_1.5b", "--rollout.kv_tokens", "347200"]) == 0
    assert "the cache holds 100 of that length at a time, the others wait" in capsys.readouterr().out


def test_adapters_alone_have_gradients_and_moments() -> None:
    """Rank 8 on q and v of 28 layers: A and B have 8 x (in + out) numbers each."""
    own = config(model__lora_rank=8, model__lora_targets=["q_proj", "v_proj"], algorithm__kl_coef=0.1)
    trained = 28 * 8 * ((1536 + 1536) + (1536 + 256))
    found = plan(own, QWEN, Hardware(1, 80e9)).learning
    assert found["gradients"] == 4 * trained and found["optimizer"] == 8 * trained
    assert found["weights"] == 4 * (QWEN.parameters + trained) + 2 * QWEN.parameters
    assert found["reference"] == 0, "without its adapters the policy is its own reference"
