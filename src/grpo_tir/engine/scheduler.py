"""Assign the slots of the KV cache: to running rows, parked rows, and prompts that more samples will use.

    slot 0  running   prompt response ▸            the first slots, without gaps, so that attention reads a slice
    slot 1  running   prompt▸
    slot 2  parked    prompt response call         waits for its tool, keeps its KV
    slot 3  prefix    prompt                       some of its samples have not started yet

The state of a row is its tokens and the number of them that are cached. An evicted row (`cached` = 0) is computed
again when a slot is free. If slots are short, prefixes are evicted first, then parked rows, then the youngest
running row. The oldest row always runs, so every batch completes in any memory that holds its longest row."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass

from grpo_tir.engine.kv_cache import KVCache, bands
from grpo_tir.generation.protocol import Request


class SequenceState:
    """One request and its state."""

    def __init__(self, request: Request, age: int, prompt: tuple[int, ...]) -> None:
        self.request, self.age, self.prompt = request, age, prompt
        self.tokens = list(prompt)  # and the response so far
        self.cached = 0  # leading tokens whose KV stands in the slot
        self.slot: int | None = None
        self.may_call = request.may_call
        self.begin_segment()

    def begin_segment(self) -> None:
        self.start = len(self.tokens)
        self.logprobs: list[float] = []

    @property
    def left(self) -> int:
        return len(self.prompt) + self.request.budget - len(self.tokens)


@dataclass
class Prefix:
    """KV of a prompt, kept while some of its samples wait for a slot."""

    prompt: tuple[int, ...]
    slot: int | None

    @property
    def cached(self) -> int:
        return len(self.prompt)


class Scheduler:
    """All rows, the queue of waiting rows, and the cache that they share.

    Args:
        cache: empty.
        max_rows: largest number of rows that run at the same time; 0 means no limit.
        kv_tokens: largest slots x width of the cache; 0 means what the rows need.
        counts: counter for `evictions` and `sorts`.
    """

    def __init__(self, cache: KVCache, max_rows: int, kv_tokens: int, counts: Counter[str]) -> None:
        self.cache, self.max_rows, self.kv_tokens, self.counts = cache, max_rows, kv_tokens, counts
        self.rows: dict[int, SequenceState] = {}
        self.queue: list[SequenceState] = []  # wait to run, oldest first
        self.owners: list[SequenceState | Prefix | None] = []  # by slot; the first `running` are running rows
        self.running = 0

    def running_rows(self) -> list[SequenceState]:
        """Running rows, ordered by slot."""
        rows = [owner for owner in self.owners[: self.running] if isinstance(owner, SequenceState)]
        assert len(rows) == self.running
        return rows

    def enqueue(self, row: SequenceState) -> None:
        """Queue a row to run; older rows come first."""
        bisect.insort(self.queue, row, key=lambda waiting: waiting.age)

    def park(self, row: SequenceState) -> None:
        """Park a row. It keeps its KV."""
        self._close_gap(row.slot)

    def remove(self, row: SequenceState) -> None:
        """Remove a running or parked row."""
        slot = row.slot
        del self.rows[row.request.row]
        self._vacate(row)
        if slot is not None and slot < self.running:
            self._close_gap(slot)

    def admit(self) -> bool:
        """Start waiting rows, oldest first, while slots are free. Returns True if any row runs."""
        full = False
        for row in list(self.queue):
            if self.max_rows and self.running >= self.max_rows:
                break
            if row.slot is None:
                if full:
                    continue
                source = self._find(row.prompt)
                if source and source.cached < len(row.prompt):
                    continue  # wait: another sample's prefill computes this prompt now
                full = not self._place(row, source)
            if row.slot is not None:
                self.queue.remove(row)
                self._swap(row.slot, self.running)
                self.running += 1
        return self.running > 0

    def _place(self, row: SequenceState, source: SequenceState | Prefix | None) -> bool:
        """Give a row a slot, with its prompt's KV if another sample has it. Returns False if there is no room."""
        # 1. Find a slot; this may evict another owner.
        slot = self._free_slot(len(row.prompt), source)
        if slot is None:
            return False
        # 2. Copy the prompt's KV from the other sample. One token must still be fed, to get logits.
        if source is not None and source.slot is not None:
            row.cached = min(len(row.prompt), len(row.tokens) - 1)
            if slot != source.slot:
                self.cache.copy(source.slot, slot, row.cached)
        self.owners[slot], row.slot = row, slot
        # 3. Drop the stored prompt if this was the last sample that waited for it.
        if isinstance(source, Prefix) and slot != source.slot and not self._awaited(row.prompt):
            self._vacate(source)
        return True

    def _free_slot(self, width: int, source: SequenceState | Prefix | None) -> int | None:
        """Return an empty slot; else a new one, the prefix's own, or one taken by eviction."""
        if None in self.owners[self.running :]:
            return self.owners.index(None, self.running)
        limit = self._limit(max(self.cache.width, width))
        slots = len(self.owners)
        if slots < limit:
            self._resize(min(limit, max(slots + 1, min(len(self.rows), 2 * slots))), max(self.cache.width, width))
            return slots
        if isinstance(source, Prefix):
            return source.slot
        if self._evict(parked=self.running == 0):
            return self.owners.index(None, self.running)
        return None

    def _limit(self, width: int) -> int:
        """Return the number of slots of that width that the memory allows."""
        return self.kv_tokens // width if self.kv_tokens else 1 << 40

    def widen(self, width: int) -> None:
        """Widen every slot to `width` tokens and some reserve. Evicts rows that then have no slot."""
        longest = max(len(row.prompt) + row.request.budget for row in self.rows.values())
        width = min(max(width * 5 // 4, 64), longest)
        slots = min(self._limit(width), max(len(self.rows), 1))
        while sum(owner is not None for owner in self.owners) > slots:
            self._evict(parked=True, running=True)
        self._resize(slots, width)

    def _resize(self, slots: int, width: int) -> None:
        for source in range(slots, len(self.owners)):  # move owners into free slots below
            if self.owners[source] is not None:
                self._swap(source, self.owners.index(None, self.running))
        live = max((owner.cached for owner in self.owners if owner), default=0)
        self.cache.resize(slots, width, live)
        self.owners = (self.owners + [None] * slots)[:slots]

    def sort(self) -> None:
        """Sort rows by length if that saves a fifth of the tokens that attention reads."""
        rows = self.running_rows()
        order = sorted(rows, key=lambda row: -row.cached)
        if _padded(rows) > 1.2 * _padded(order):
            self.counts["sorts"] += 1
            self.cache.permute([row.slot for row in order if row.slot is not None], order[0].cached)
            for slot, row in enumerate(order):
                self.owners[slot], row.slot = row, slot

    def _evict(self, parked: bool = False, running: bool = False) -> bool:
        """Evict a prefix, else (if allowed) a parked row, else the youngest running row."""
        victim = self._victim(parked, running)
        if isinstance(victim, SequenceState):
            self.counts["evictions"] += 1
            if victim not in self._idle():
                self._close_gap(victim.slot)
                self.enqueue(victim)
            victim.cached = 0
        if victim:
            self._vacate(victim)
        return victim is not None

    def _victim(self, parked: bool, running: bool) -> SequenceState | Prefix | None:
        idle = self._idle()
        for owner in idle:
            if isinstance(owner, Prefix):
                return owner
        rows = [owner for owner in idle if isinstance(owner, SequenceState)]
        if rows and parked:
            return max(rows, key=lambda row: (row not in self.queue, row.age))  # first one that cannot run yet
        if running:
            return max(self.running_rows(), key=lambda row: row.age)
        return None

    def _idle(self) -> list[SequenceState | Prefix]:
        return [owner for owner in self.owners[self.running :] if owner]

    def _close_gap(self, slot: int | None) -> None:
        """Close the gap of a row among the running ones. The content of its slot stays cached."""
        assert slot is not None
        self.running -= 1
        self._swap(slot, self.running)

    def _vacate(self, owner: SequenceState | Prefix) -> None:
        """Empty a slot, unless waiting samples need its prompt and no other slot has it."""
        slot, owner.slot = owner.slot, None
        if slot is None:
            return
        self.owners[slot] = None
        awaited = (
            isinstance(owner, SequenceState) and owner.cached >= len(owner.prompt) and self._awaited(owner.prompt)
        )
        if awaited and self._find(owner.prompt) is None:
            self.owners[slot] = Prefix(owner.prompt, slot)

    def _swap(self, a: int, b: int) -> None:
        """Exchange two slots. Either may be empty."""
        if a == b:
            return
        first, second = self.owners[a], self.owners[b]
        if first and second:
            self.cache.swap(a, b, first.cached, second.cached)
        elif first:
            self.cache.copy(a, b, first.cached)
        elif second:
            self.cache.copy(b, a, second.cached)
        for slot, owner in ((a, second), (b, first)):
            self.owners[slot] = owner
            if owner:
                owner.slot = slot

    def _find(self, prompt: tuple[int, ...]) -> SequenceState | Prefix | None:
        """Return the slot owner that holds most of this prompt's KV."""
        found = [owner for owner in self.owners if owner and owner.prompt is prompt]
        return max(found, key=lambda owner: owner.cached, default=None)

    def _awaited(self, prompt: tuple[int, ...]) -> bool:
        return any(row.prompt is prompt and row.slot is None for row in self.queue)


def _padded(rows: list[SequenceState]) -> int:
    """Count the cached tokens that attention reads, padding included."""
    return sum((slots.stop - slots.start) * longest for slots, longest in bands([row.cached for row in rows]))
