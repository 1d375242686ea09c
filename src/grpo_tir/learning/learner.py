"""Turn rollouts with advantages into optimizer steps.

    for each epoch, for each mini-batch of groups:
        denominator  = sum over all ranks of model tokens (or rows)
        for each micro-batch:  backward(loss / denominator)
        clip, step

The gradient is that of the full mini-batch, for any number of ranks and any micro-batch size. With one update per
rollout batch, old_logprobs are those of the current policy and the ratio is 1. With several updates the learner
computes old_logprobs first. The log-probs of generator and learner are compared and the gap is logged.
`importance_cap` corrects the gap by truncated importance weights. `sequence_mask` leaves out responses with a
large gap. With `rollout.carry_over` the generator's log-probs are those of the weights that drew each token.

Shapes: B rows, T tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo_tir.config import Config, OptimConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.engine.support import unsupported_reason
from grpo_tir.errors import TrainingDiverged
from grpo_tir.learning.batching import MicroBatch, TrainingSample, collate, idle_row, plan_micro_batches
from grpo_tir.learning.compiled import Layers
from grpo_tir.learning.levelling import Levelling, split
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.lora import without_adapters
from grpo_tir.learning.loss import count, grpo_loss, sequence_ratio
from grpo_tir.learning.packing import packed_attention
from grpo_tir.learning.prepare import disable_dropout
from grpo_tir.learning.statistics import UpdateStatistics, first_probability
from grpo_tir.types import RolloutGroup


@dataclass(frozen=True)
class MiniBatch:
    """Samples of one optimizer step on this rank."""

    samples: list[TrainingSample]
    normalizer: float
    """Denominator of the loss over all ranks (`loss.count`)."""


class Learner:
    """Hold the policy, its optimizer and, with `kl_coef`, the reference policy. If `reference` is None, the policy
    with its adapters turned off is the reference. `call_token` is the first token of a tool call; its probability
    is measured. `log` prints how `model.compile` was decided."""

    def __init__(
        self,
        runtime: Runtime,
        model: Any,
        config: Config,
        reference: Any = None,
        call_token: int | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        # 1. Policy and reference, as modules that return log-probs.
        self.runtime, self.config = runtime, config
        temperature, optim = config.rollout.temperature, config.optim
        disable_dropout(model)
        self.module = TokenLogprobs(model, temperature, optim.logits_mb)
        self.module.watched = call_token
        self.reference: TokenLogprobs | None = None
        if reference is not None:
            self.reference = TokenLogprobs(reference, temperature, optim.logits_mb).to(runtime.device)
        with runtime.full_weights(model):
            self.packs = optim.packing and unsupported_reason(model) is None
        self.layers = Layers(self.module, config, runtime, log)
        # 2. Optimizer, and wrappers for several ranks.
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=runtime.device.type == "cuda" and not runtime.stage,
        )
        self.policy, self.optimizer = runtime.prepare(self.module, self.optimizer, optim.max_grad_norm)
        self.skipped = 0
        """Number of optimizer steps in a row without a finite gradient."""

    @contextmanager
    def updating(self, step: int) -> Iterator[None]:
        """Set learning rate, train mode and packing for the updates of training step `step` (from 0)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.optim, self.config.train.steps)
        self.training_step = step + 1
        self.statistics = UpdateStatistics(self.runtime, self.config, self.module.watched is not None)
        self.levelling = Levelling(self.runtime)
        self.policy.train()
        with ExitStack() as stack:
            for module in (self.module, self.reference):
                if self.packs and module is not None:
                    stack.enter_context(packed_attention(module.model))
            yield

    def mini_batches(self, groups: Sequence[RolloutGroup]) -> Iterator[MiniBatch]:
        """Yield one mini-batch for each optimizer step: `algorithm.epochs` times `algorithm.mini_batches`.

        Before the first one, deal the rows anew over the ranks, and compute the log-probs of the old policy and,
        with `kl_coef`, those of the reference policy. A mini-batch that is empty on all ranks is left out.
        """
        options = self.config.algorithm
        batches = split(groups, options.mini_batches, self.training_step, self.runtime)
        batches = [self.levelling.level(samples) for samples in batches]
        samples = [sample for batch in batches for sample in batch]
        if options.mini_batches * options.epochs > 1:
            self._annotate(self.module, samples, "old_logprobs")
        if options.kl_coef:
            with nullcontext() if self.reference else without_adapters(self.module.model):
                self._annotate(self.reference or self.module, samples, "ref_logprobs")
        longest = self.config.rollout.max_completion_length
        for _ in range(options.epochs):
            for batch in batches:
                masks = [torch.tensor([sample.loss_mask]) for sample in batch]
                local = sum(count(mask, options.aggregation, longest) for mask in masks)
                normalizer = self.runtime.sum([local])[0]
                if normalizer:
                    yield MiniBatch(batch, normalizer)

    def backward(self, batch: MiniBatch) -> None:
        """Add the gradient of the GRPO loss of one mini-batch, micro-batch by micro-batch.

        Raises:
            CertificateError: generator and learner disagree about the log-probs.
        """
        micro_batches = plan_micro_batches(batch.samples, self.config.optim.micro_batch_tokens, self.packs)
        rounds = int(self.runtime.max([len(micro_batches)])[0])  # ranks with fewer micro-batches add idle ones
        micro_batches += [[idle_row()]] * (rounds - len(micro_batches))
        self.layers.choose(micro_batches[0], self.policy)
        # Autocast keeps the bf16 weights until the outermost context ends, so that they are cast once, not again
        # for every micro-batch, recomputed layer and chunk of the head. Backward passes run outside of autocast.
        with self.runtime.autocast(self.policy), self.layers():
            for i, part in enumerate(micro_batches):
                with self.runtime.hold_sync(self.policy, hold=i + 1 < rounds):
                    loss = self._loss(collate(part, self.runtime.device), batch.normalizer)
                    self.runtime.backward(self.policy, loss)
        self.statistics.certify()

    def step(self, batch: MiniBatch) -> None:
        """Clip the gradient and take the optimizer step. Without a finite gradient, dump the mini-batch instead.

        Raises:
            TrainingDiverged: `train.max_skipped` optimizer steps in a row were skipped.
        """
        norm = self.runtime.step(self.policy, self.optimizer)
        self.statistics.norms.append(norm)
        if math.isfinite(norm):
            self.skipped = 0
        else:
            self._skip(batch, norm)

    def report(self) -> dict[str, float]:
        """Return the metrics since `updating` began. All ranks must call it together."""
        self.levelling.return_logprobs()
        return self.statistics.report(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def _annotate(self, module: TokenLogprobs, rows: list[TrainingSample], name: str) -> None:
        """Set the log-probs of a fixed policy as attribute `name` of each row."""
        layers = self.layers if module is self.module else nullcontext
        with self.runtime.full_weights(module), self.runtime.autocast(), layers():
            for part in plan_micro_batches(rows, self.config.optim.micro_batch_tokens, self.packs):
                batch = collate(part, self.runtime.device)
                logprobs, _ = module(*batch.host)
                for row, values in zip(part, logprobs, strict=True):
                    setattr(row, name, values[: len(row.token_ids)].cpu())

    def _loss(self, batch: MicroBatch, normalizer: float) -> torch.Tensor:
        """Compute this micro-batch's share of the mini-batch loss."""
        options = self.config.algorithm
        # 1. Log-probs of the policy, of the old policy and of the reference policy.
        with self.runtime.autocast(self.policy):
            logprobs, entropy = self.policy(*batch.host)  # (B, T)
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        ref = logprobs.detach() if batch.ref_logprobs is None else batch.ref_logprobs
        batch.remember(old)
        # 2. Loss: optionally with importance weights, and without the responses that `sequence_mask` leaves out.
        gap = old - batch.sampled_logprobs  # (B, T) learner against generator, before any update
        mask = batch.loss_mask
        if options.sequence_mask:
            low, high = options.sequence_mask
            sequence = sequence_ratio(gap, mask, options.sequence_mask_by)  # (B,)
            left_out = (sequence < low) | (sequence > high)  # not a NaN, so that the gradient shows it
            self.statistics.add(masked=left_out.sum())
            mask = mask * ~left_out[:, None]
        loss, info = grpo_loss(
            logprobs,
            old,
            batch.advantages,
            mask,
            aggregation=options.aggregation,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            normalizer=normalizer,
            ratio=options.ratio,
            objective=options.objective,
            ref_logprobs=ref if options.kl_coef else None,
            kl_coef=options.kl_coef,
            weights=gap.exp().clamp(max=options.importance_cap) if options.importance_cap else None,
        )
        # 3. Sums for metrics and certificate.
        opens = first_probability(self.module.watched_probs, batch.input_ids, self.module.watched, batch.loss_mask)
        info["tokens"] = batch.loss_mask.sum()  # also of responses that `sequence_mask` left out
        self.statistics.add(**info, loss=loss, entropy=entropy.sum(), opens=opens.sum())
        self.statistics.compare(batch, old)
        return loss

    def _skip(self, batch: MiniBatch, norm: float) -> None:
        """Dump the mini-batch for inspection. Raise after too many skipped steps in a row."""
        self.skipped += 1
        folder = Path(self.config.train.output_dir) / "dumps" / f"step_{self.training_step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        samples = [{**vars(sample), "rollout": None} for sample in batch.samples]
        torch.save(samples, folder / f"rank{self.runtime.rank}.pt")
        if self.skipped >= self.config.train.max_skipped:
            raise TrainingDiverged(
                f"{self.skipped} optimizer steps in a row had a gradient norm of {norm}; "
                f"the last mini-batch is in {folder}. Lower optim.lr, or look at that batch"
            )


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of training step `step` (from 0) of `steps`: linear warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return optim.lr * factor[optim.schedule]
