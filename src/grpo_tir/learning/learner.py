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

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpo_tir.config import Config, OptimConfig
from grpo_tir.distributed.runtime import Runtime, balance
from grpo_tir.engine.support import unsupported_reason
from grpo_tir.errors import ConfigError, TrainingDiverged
from grpo_tir.learning.batching import MicroBatch, TrainingSample, collate, idle_row, plan_micro_batches, to_row
from grpo_tir.learning.certificate import TOLERANCE, Agreement, check_logprobs
from grpo_tir.learning.compiled import Layers, choose_layers, compile_layers
from grpo_tir.learning.logprobs import TokenLogprobs, first_probability
from grpo_tir.learning.lora import without_adapters
from grpo_tir.learning.loss import count, grpo_loss, sequence_ratio
from grpo_tir.learning.packing import packed_attention
from grpo_tir.monitor.metrics import update_metrics
from grpo_tir.types import Rollout, RolloutGroup


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
        temperature = config.rollout.temperature
        optim = config.optim
        disable_dropout(model)
        self.module = TokenLogprobs(model, temperature, optim.logits_mb)
        self.module.watched = call_token
        self.reference = (
            TokenLogprobs(reference, temperature, optim.logits_mb).to(runtime.device)
            if reference is not None
            else None
        )
        with runtime.full_weights(model):
            self.packs = optim.packing and unsupported_reason(model) is None
        if config.model.compile and runtime.stage:
            raise ConfigError("model.compile does not work with DeepSpeed: set it to false")
        self.layers: Layers = compile_layers(self.module) if config.model.compile else nullcontext
        measured = runtime.device.type == "cuda" and not runtime.stage and not config.train.deterministic
        self.layers_chosen = config.model.compile is not None or not measured
        self.log = log
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
        self.skipped = self.training_step = 0
        self.tolerance = config.train.logprob_tolerance or TOLERANCE["bf16" if runtime.bf16 else "fp32"]
        self.tolerance_used = 0.0
        self.sums: dict[str, float | torch.Tensor] = {}
        """Sums over the current rollout batch on this rank."""
        self.gap_max = torch.zeros((), device=runtime.device)
        self.dump = Path("dumps")
        self.agreements: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Log-prob agreement of the micro-batches of one optimizer step (`MicroBatch.agreement`)."""
        self.guests: list[Rollout] = []
        self.away: dict[tuple[int, int], Rollout] = {}
        """Rollouts that this rank trains for other ranks (without their segments), and those that others train for
        it, by group and sample."""

    @contextmanager
    def updating(self, step: int, dump: Path) -> Iterator[None]:
        """Set learning rate, train mode and packing for the optimizer steps on one rollout batch, in a context.

        Args:
            step: training step, from 0; sets the learning rate.
            dump: folder for mini-batches without a finite gradient.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.optim, self.config.train.steps)
        self.sums, self.tolerance_used, self.dump, self.training_step = {}, 0.0, dump, step + 1
        self.guests, self.away = [], {}
        self.gap_max.zero_()
        self.policy.train()
        with ExitStack() as stack:
            for module in (self.module, self.reference):
                if self.packs and module is not None:
                    stack.enter_context(packed_attention(module.model))
            yield

    def mini_batches(self, groups: Sequence[RolloutGroup]) -> Iterator[MiniBatch]:
        """Yield one mini-batch for each optimizer step: `algorithm.epochs` times `algorithm.mini_batches`.

        Before the first one, deal the rows anew over the ranks (`_level`), and compute the log-probs of the old
        policy (eq. 2) and, with `kl_coef`, those of the reference policy. A mini-batch that is empty on all ranks
        is left out.
        """
        options = self.config.algorithm
        batches = [self._level(samples) for samples in self._split(groups)]
        samples = [sample for batch in batches for sample in batch]
        if options.mini_batches * options.epochs > 1:
            self._annotate(self.module, samples, "old_logprobs")
        if options.kl_coef:
            self._annotate_reference(samples)
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
        if not self.layers_chosen:
            self._choose_layers(micro_batches[0])
        # Autocast keeps the bf16 weights until the outermost context ends, so that they are cast once, not again
        # for every micro-batch, recomputed layer and chunk of the head. Backward passes run outside of autocast.
        with self.runtime.autocast(self.policy), self.layers():
            for i, part in enumerate(micro_batches):
                with self.runtime.hold_sync(self.policy, hold=i + 1 < rounds):
                    loss = self._loss(collate(part, self.runtime.device), batch.normalizer)
                    self.runtime.backward(self.policy, loss)
        self._certify()

    def step(self, batch: MiniBatch) -> None:
        """Clip the gradient and take the optimizer step. Without a finite gradient, dump the mini-batch instead.

        Raises:
            TrainingDiverged: `train.max_skipped` optimizer steps in a row were skipped.
        """
        norm = self.runtime.step(self.policy, self.optimizer)
        if math.isfinite(norm):
            self.skipped = 0
            self._add(grad_norm=norm, steps=1)
        else:
            self._add(skipped=1)
            self._skip(batch, norm)

    def report(self) -> dict[str, float]:
        """Return the metrics of the optimizer steps since `updating` began, and give the learner's log-probs of
        rows that another rank trained to the rank that sampled them. All ranks must call it together."""
        found = [
            (guest.group, guest.sample, torch.as_tensor(guest.old_logprobs).tolist())
            for guest in self.guests
            if guest.old_logprobs is not None
        ]
        for group, sample, logprobs in self.runtime.gather(found):
            if (group, sample) in self.away:
                self.away[group, sample].old_logprobs = logprobs
        names = ["entropy", "gap", "clipped_low", "clipped_high", "kl", "tokens", "loss", "responses"]
        names += ["far", "masked", "opens"]
        totals = dict(
            zip(names, self.runtime.sum([float(self.sums.get(name, 0.0)) for name in names]), strict=True)
        )
        if not self.config.algorithm.kl_coef:
            del totals["kl"]
        if not self.config.algorithm.sequence_mask:
            del totals["masked"]
        if self.module.watched is None:
            del totals["opens"]
        for name in ("grad_norm", "steps", "skipped"):  # equal on all ranks
            totals[name] = float(self.sums.get(name, 0.0))
        totals["gap_max"] = self.runtime.max([self.gap_max.item()])[0]
        totals["tolerance_used"] = self.tolerance_used
        updates = self.config.algorithm.mini_batches * self.config.algorithm.epochs
        return update_metrics(totals, updates, self.optimizer.param_groups[0]["lr"])

    def _split(self, groups: Sequence[RolloutGroup]) -> list[list[TrainingSample]]:
        """Split groups into mini-batches by their position in the batch of all ranks, not in this rank's share.
        The mini-batches are then the same for any number of ranks."""
        parts = self.config.algorithm.mini_batches
        numbers = [group.rollouts[0].group for group in groups]
        position = {number: i for i, number in enumerate(sorted(self.runtime.gather(numbers)))}
        batches: list[list[TrainingSample]] = [[] for _ in range(parts)]
        for group, number in zip(groups, numbers, strict=True):
            rows = [to_row(rollout, self.training_step) for rollout in group.rollouts if rollout.trained]
            batches[position[number] % parts] += rows
        return batches

    def _choose_layers(self, part: list[TrainingSample]) -> None:
        """Decide on the first micro-batch whether decoder layers and head are compiled."""
        self.log("learner: compiling and timing its layers; takes about a minute, once")
        batch = collate(part, self.runtime.device)

        def run() -> torch.Tensor:
            with self.runtime.autocast():
                logprobs, _ = self.module(*batch.host)
            with self.runtime.hold_sync(self.policy, hold=True):
                logprobs.sum().backward()
            return logprobs

        self.layers, line = choose_layers(self.module, run, TOLERANCE["bf16" if self.runtime.bf16 else "fp32"])
        self.optimizer.zero_grad()
        self.layers_chosen = True
        self.log(line)

    def _level(self, samples: list[TrainingSample]) -> list[TrainingSample]:
        """Move rows between the ranks, so that all have about the same number of tokens and finish together.
        Sampling was dealt by prompt, because lengths were unknown. The gradient is that of all ranks."""
        rank = self.runtime.rank
        moves = balance(self.runtime.gather([[len(sample.token_ids) for sample in samples]]))
        sent = []
        for (source, i), target in moves.items():
            if source == rank:
                rollout = samples[i].rollout
                assert rollout, "idle rows come later"
                self.away[rollout.group, rollout.sample] = rollout
                sent.append((target, replace(samples[i], rollout=replace(rollout, segments=[], calls=[]))))
        arrived = [sample for target, sample in self.runtime.gather(sent) if target == rank]
        self.guests += [sample.rollout for sample in arrived if sample.rollout]
        return [sample for i, sample in enumerate(samples) if (rank, i) not in moves] + arrived

    def _annotate_reference(self, rows: list[TrainingSample]) -> None:
        """Set `ref_logprobs`: those of a second model, or of the policy without its adapters."""
        if self.reference is not None:
            self._annotate(self.reference, rows, "ref_logprobs")
        else:
            with without_adapters(self.module.model):
                self._annotate(self.module, rows, "ref_logprobs")

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
        opens = first_probability(self.module.watched_probs, batch.input_ids, self.module.watched, batch.loss_mask)
        old_rows = [row.old_logprobs for row in batch.rows if row.old_logprobs is not None]
        old = batch.stack(old_rows) if len(old_rows) == len(batch.rows) else logprobs.detach()
        ref_rows = [row.ref_logprobs for row in batch.rows if row.ref_logprobs is not None]
        ref = batch.stack(ref_rows) if len(ref_rows) == len(batch.rows) else logprobs.detach()
        batch.remember(old)
        gap = old - batch.sampled_logprobs  # (B, T) learner against generator, before any update
        # 2. Loss: optionally with importance weights, and without the responses that `sequence_mask` leaves out.
        kept = self._in_trust_region(gap, batch.loss_mask)  # (B,)
        loss, info = grpo_loss(
            logprobs,
            old,
            batch.advantages,
            batch.loss_mask * kept[:, None],
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
        gaps = torch.where(batch.loss_mask.bool(), gap.abs(), 0.0)
        self._add(opens=opens.sum(), loss=loss, entropy=entropy.sum(), gap=gaps.sum())
        self._add(**{**info, "tokens": batch.loss_mask.sum()})
        self.gap_max = torch.maximum(self.gap_max, gaps.max())
        self.agreements.append(batch.agreement(old))
        return loss

    def _in_trust_region(self, gap: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        """Map the gap of log-probs (B, T) to (B,) bool: False for a response that `sequence_mask` leaves out.
        Count these, and those with a ratio outside [1/3, 3]. A NaN stays in, so that the gradient shows it."""
        options, ratio = self.config.algorithm, sequence_ratio(gap, loss_mask)
        far = (ratio < 1 / 3) | (ratio > 3)  # never an idle row: its ratio is 1
        self._add(responses=loss_mask.any(1).sum(), far=far.sum())
        if not options.sequence_mask:
            return torch.ones_like(far)
        low, high = options.sequence_mask
        ratio = sequence_ratio(gap, loss_mask, options.sequence_mask_by)
        masked = (ratio < low) | (ratio > high)
        self._add(masked=masked.sum())
        return ~masked

    def _certify(self) -> None:
        """Check before the step that the log-probs of generator and learner agree over all ranks."""
        sums, worst = (torch.stack(column) for column in zip(*self.agreements, strict=True))
        self.agreements.clear()
        *totals, most = torch.cat([sums.sum(0), worst.max()[None]]).tolist()  # the only read of a mini-batch
        found = Agreement(*self.runtime.sum(totals), *self.runtime.max([most]))
        self.tolerance_used = max(self.tolerance_used, found.used(self.tolerance))
        check_logprobs(found, self.tolerance)

    def _skip(self, batch: MiniBatch, norm: float) -> None:
        """Dump the mini-batch for inspection. Raise after too many skipped steps in a row."""
        self.skipped += 1
        self.dump.mkdir(parents=True, exist_ok=True)
        samples = [{**vars(sample), "rollout": None} for sample in batch.samples]
        torch.save(samples, self.dump / f"rank{self.runtime.rank}.pt")
        if self.skipped >= self.config.train.max_skipped:
            raise TrainingDiverged(
                f"{self.skipped} optimizer steps in a row had a gradient norm of {norm}; "
                f"the last mini-batch is in {self.dump}. Lower optim.lr, or look at that batch"
            )

    def _add(self, **numbers: float | torch.Tensor) -> None:
        """Add to the sums. Tensors stay on the device: a read in a micro-batch would make the GPU wait."""
        for name, number in numbers.items():
            value = number.detach().double() if isinstance(number, torch.Tensor) else number
            self.sums[name] = self.sums.get(name, 0.0) + value


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability to 0. Otherwise the learner's policy would differ from the generator's, the
    gradient would depend on the split into micro-batches, and a resume would need the random generator's state."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """Return the learning rate of training step `step` (from 0) of `steps`: linear warm-up, then the schedule."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    factor: dict[str, Callable[[float], float]] = {
        "constant": lambda x: 1.0,
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    }
    return optim.lr * factor[optim.schedule](done)
