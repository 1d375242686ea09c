"""The token certificate: checks by hand on small rows, and real runs into which each violation is injected."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_tir.config import Config
from grpo_tir.errors import CertificateError
from grpo_tir.generation.sampling import Sampling
from grpo_tir.learning import statistics
from grpo_tir.learning.batching import collate, to_row
from grpo_tir.learning.certificate import TOLERANCE, Agreement, check_logprobs, check_tokens
from grpo_tir.report.read import read_run
from grpo_tir.rollouts.policy import Policy
from grpo_tir.train import train
from grpo_tir.types import Rollout, stamp
from grpo_tir.utils.files import read_jsonl
from scripted import CALL, play_one
from tiny_policy import change
from training_run import prepare

STAMPS = [stamp("model", [5, 6, 7]), stamp("tool", [8, 9]), stamp("model", [4])]
IDS = [1, 2, 5, 6, 7, 8, 9, 4]  # a prompt of two
MASK = [0, 0, 1, 1, 1, 0, 0, 1]


def check(token_ids: list[int] = IDS, loss_mask: list[int] = MASK) -> None:
    check_tokens(STAMPS, 2, token_ids, loss_mask, "row 3")


def test_what_was_sampled_passes() -> None:
    check()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"token_ids": [1, 2, 5, 6, 3, 8, 9, 4]}, "not the ids that were sampled (segment 0, tokens 2 to 5)"),
        ({"token_ids": [1, 2, 5, 6, 7, 8, 3, 4]}, "not the ids that were inserted (segment 1, tokens 5 to 7)"),
        ({"token_ids": [1, 2, 6, 5, 7, 8, 9, 4]}, "not the ids that were sampled"),  # two that changed places
        ({"token_ids": [*IDS, 4]}, "9 tokens are to be trained, 8 were sampled or inserted"),
        ({"token_ids": IDS[:-1]}, "not the ids that were sampled (segment 2"),
        ({"loss_mask": [0, 1, 1, 1, 1, 0, 0, 1]}, "1 prompt tokens are in the loss"),
        ({"loss_mask": [0, 0, 1, 1, 1, 1, 0, 1]}, "1 tool tokens are in the loss (segment 1, tokens 5 to 7)"),
        ({"loss_mask": [0, 0, 0, 1, 1, 1, 0, 0]}, "1 sampled tokens are not in the loss"),  # shifted by one
        ({"loss_mask": [*MASK, 0]}, "8 tokens are to be trained"),
    ],
)
def test_each_difference_is_named_with_its_place(fault: dict[str, Any], says: str) -> None:
    with pytest.raises(CertificateError) as error:
        check(**fault)
    assert str(error.value).startswith("row 3: ")
    assert says in str(error.value)


def test_the_loop_stamps_all_that_it_samples_and_inserts() -> None:
    rollout = play_one([CALL, "\\boxed{42}"])
    assert rollout.stamps == [stamp(segment.kind, segment.token_ids) for segment in rollout.segments]
    assert [piece.kind for piece in rollout.stamps] == ["model", "tool", "model"]
    assert any(to_row(rollout).compared)


def test_a_token_that_was_encoded_again_is_seen_though_its_text_is_the_same() -> None:
    """`ab` as one token and as two: same text, other ids."""
    rollout = play_one([CALL, "\\boxed{42}"])
    rollout.segments[2].token_ids = [*rollout.segments[2].token_ids[:-2], 0, 0]
    with pytest.raises(CertificateError, match="group 0, sample 0: the ids to be trained"):
        to_row(rollout)


def agreement(x: list[float], y: list[float], worst: float = 0.0) -> Agreement:
    """Of the learner's log-probs x and the generator's y, token by token."""
    pairs = list(zip(x, y, strict=True))
    return Agreement(
        len(x), sum(abs(a - b) for a, b in pairs), sum((a - b) ** 2 for a, b in pairs), sum(x), sum(y),
        sum(a * a for a in x), sum(a * b for a, b in pairs), worst,
    )  # fmt: skip


def test_the_gap_is_the_larger_share_of_batch_and_worst_response() -> None:
    x = [-1.0, -2.0, -3.0, -4.0]
    shifted = [value - 0.01 for value in x]  # as steep as the learner's
    assert agreement(x, shifted, worst=0.1).used(0.05) == pytest.approx(0.2)
    assert agreement(x, shifted, worst=0.4).used(0.05) == pytest.approx(0.8)
    check_logprobs(agreement(x, [value - 0.0499 for value in x], 0.49), 0.05)
    for y, worst in (([value - 0.051 for value in x], 0.1), (shifted, 0.51)):
        with pytest.raises(CertificateError, match=r"allows 0\.05 and 0\.5"):
            check_logprobs(agreement(x, y, worst), 0.05)
    check_logprobs(agreement([math.nan] * 2, x[:2], math.nan), 0.05)  # the guard against NaN speaks for itself


def test_a_slope_is_that_of_least_squares_and_rounding_may_bend_it() -> None:
    x = [-1.0, -2.0, -3.0, -4.0]  # mean -2.5, squares around it 5
    slope, bend = agreement(x, [1.1 * value for value in x]).slope()
    assert slope == pytest.approx(1.1)
    noise = 0.01 * (1 + 4 + 9 + 16) / 5  # sum of (x - y)^2 over 5
    assert bend == pytest.approx(noise + 4 * math.sqrt(noise / 4))
    assert agreement([-1.0, -1.0], [-1.0, -1.1]).slope() == (1.0, math.inf), "no spread, no slope"
    assert agreement([], []).used(0.05) == 0.0


def test_a_small_gap_that_is_steep_is_another_temperature_and_a_larger_one_that_is_noise_is_not() -> None:
    rng = random.Random(0)
    x = [-rng.expovariate(1.0) for _ in range(2000)]
    steep = [1.027 * value for value in x]  # a mean gap of 0.027, within bf16's 0.03
    noisy = [value + rng.gauss(0, 0.036) for value in x]  # 0.029
    assert agreement(x, noisy).gap > agreement(x, steep).gap
    assert agreement(x, noisy).used(TOLERANCE["bf16"]) < 1 < agreement(x, steep).used(TOLERANCE["bf16"])


def test_the_sums_are_over_model_tokens_of_certified_rows_only() -> None:
    rows = [to_row(play_one([CALL, "x"])), to_row(play_one(["xyz"]))]
    rows[1].compared = []
    batch = collate(rows, torch.device("cpu"))
    old = torch.where(batch.loss_mask.bool(), batch.sampled_logprobs - 0.5, torch.nan)  # (B, T)

    def found_with(old: torch.Tensor) -> Agreement:
        sums, worst = statistics.agreement(batch, old)
        return Agreement(*sums.tolist(), worst.item())

    found, tokens = found_with(old), sum(rows[0].loss_mask)
    assert (found.tokens, found.gap, found.square) == pytest.approx((tokens, 0.5 * tokens, 0.25 * tokens))
    assert found.worst == pytest.approx(0.5)
    assert found.x == pytest.approx(sum(rows[0].sampled_logprobs) - 0.5 * tokens)
    assert found_with(batch.sampled_logprobs).used(1e-3) == 0.0


# --- real runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Config:
    """Two steps of a random model that calls the tool all the time (tests/training_run.py)."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{n}?", "answer": str(n)}) + "\n" for n in range(4)))
    prepare(tmp_path)
    return change(
        Config(), model__path=str(tmp_path / "model"), data__train=str(problems), data__template="plain",
        rollout__prompts_per_step=2, rollout__samples_per_prompt=4, rollout__max_completion_length=60,
        tool__max_tool_calls=2, executor__kind="process", executor__slots=2, optim__lr=0.01,
        train__output_dir=str(tmp_path / "run"), train__steps=2, train__report_to=[], train__sample_every=0,
    )  # fmt: skip


def test_an_honest_run_uses_little_of_its_tolerance(recipe: Config) -> None:
    assert train(recipe) == 0
    lines = read_jsonl(Path(recipe.train.output_dir) / "metrics.jsonl")
    assert [line["certificate/used"] < 0.1 for line in lines] == [True, True]
    assert all(line["tools/calls_mean"] > 0 for line in lines), "tool tokens were there to be confused"


def test_a_run_rings_and_its_report_says_the_same(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Most of what this random model writes has no end."""
    assert train(recipe) == 0
    rung = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ALARM")]
    assert len(rung) == 1 and "are cut off by rollout.max_completion_length 60" in rung[0]
    ((first, _, text),) = read_run(Path(recipe.train.output_dir)).alarms
    assert first == 1 and text in rung[0]


def test_the_batch_of_a_gradient_spike_is_written_down(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2 is not due otherwise (train.rollouts_every 10)."""
    monkeypatch.setattr("grpo_tir.monitor.run_log.grad_norm_spiked", lambda history: len(history) == 2)
    assert train(recipe) == 0
    written = sorted(path.name for path in (Path(recipe.train.output_dir) / "rollouts").iterdir())
    assert written == ["step_000001.jsonl", "step_000002.jsonl"]


def shifted_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask one token late, as where a round is counted wrongly."""
    honest = Rollout.loss_mask.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Rollout, "loss_mask", property(lambda self: [0, *honest(self)[:-1]]))


def trained_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "loss_mask", property(lambda self: [1] * len(self.token_ids)))


def reencoded_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """One id of one response is another one by the time it is learned from."""
    from grpo_tir import train as module

    honest = module.assign_advantages

    def assign(groups: Any, config: Any) -> None:
        honest(groups, config)
        ids = groups[1].rollouts[2].segments[-1].token_ids
        ids[0] = ids[0] - 1 if ids[0] else 1

    monkeypatch.setattr(module, "assign_advantages", assign)


def wrong_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator draws at 0.9, the learner believes in 1."""
    honest = Policy.generator
    monkeypatch.setattr(Policy, "generator", lambda self, config, *_: honest(self, config, Sampling(0.9)))


@pytest.mark.parametrize(
    ("inject", "says"),
    [
        (shifted_mask, "sampled tokens are not in the loss"),
        (trained_observations, "tool tokens are in the loss"),
        (reencoded_id, "group 1, sample 2: the ids to be trained are not the ids that were"),
        (wrong_temperature, "the generator's log-probs are not the learner's"),
    ],
)
def test_training_stops_before_it_learns_from_a_violation(
    inject: Any, says: str, recipe: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch)
    with pytest.raises(CertificateError, match=says) as error:
        train(recipe)
    assert error.value.exit_code == 1
    assert not (Path(recipe.train.output_dir) / "metrics.jsonl").exists(), "no step was taken"


def test_a_tolerance_of_one_s_own_is_used(recipe: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_temperature(monkeypatch)
    assert train(change(recipe, train__logprob_tolerance=10.0)) == 0
    assert TOLERANCE["fp32"] == 1e-3
