"""Assign slots of the KV cache to running rows, parked rows, and prompts that more samples will use.

    slot 0  running   prompt response ▸            in the first slots, without gaps: attention reads a slice
    slot 1  running   prompt▸
    slot 2  parked    prompt response call         waits for its tool, keeps its KV
    slot 3  prefix    prompt                       some of its samples have not started yet

The state of a row is its tokens and the number of them that are cached. An evicted row (`cached` = 0) is computed
again when a slot is free. If slots are short, prefixes are evicted first, then parked rows, then the youngest
running row. The oldest running row is evicted last, so every batch completes in any memory that holds its longest
row.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass

from grpo_tir.engine.kv_cache import KVCache, bands
from grpo_tir.engine.paged_cache import PagedCache
from grpo_tir.generation.protocol import Request


class SequenceState:
    """Hold one request, its tokens so far, and its slot."""

    def __init__(self, request: Request, age: int, prompt: tuple[int, ...]) -> None:
        self.request, self.age, self.prompt = request, age, prompt
        self.tokens = [*prompt, *request.response]  # prompt and response so far
        self.cached = 0  # number of leading tokens that have KV in the slot
        self.slot: int | None = None
        self.may_call = request.may_call
        self.begin_segment()
        self.start -= request.cut

    def begin_segment(self) -> None:
        self.start = len(self.tokens)  # of the segment that is sampled now
        self.logprobs: list[float] = []

    @property
    def drawn(self) -> list[int]:
        """Return the tokens that have log-probs: all of the segment, unless an earlier step began it."""
        return self.tokens[len(self.tokens) - len(self.logprobs) :]

    @property
    def budget_left(self) -> int:
        return len(self.prompt) + self.request.budget - len(self.tokens)


@dataclass
class Prefix:
    """Keep the KV of a prompt while some of its samples wait for a slot."""

    prompt: tuple[int, ...]
    slot: int | None

    @property
    def cached(self) -> int:
        return len(self.prompt)


class Scheduler:
    """Decide which rows run, and in which slots of the cache.

    Args:
        cache: empty KV cache.
        max_rows: largest number of rows that run at the same time; 0 means no limit.
        counts: counter for `evictions` and `sorts`.
    """

    def __init__(self, cache: KVCache | PagedCache, max_rows: int, counts: Counter[str]) -> None:
        self.cache, self.max_rows, self.counts = cache, max_rows, counts
        self.rows: dict[int, SequenceState] = {}
        self.queue: list[SequenceState] = []  # rows that wait to run, oldest first
        self.owners: list[SequenceState | Prefix | None] = []  # by slot; the first `running` are running rows
        self.running = 0

    def running_rows(self) -> list[SequenceState]:
        """Return the running rows, ordered by slot."""
        rows = [owner for owner in self.owners[: self.running] if isinstance(owner, SequenceState)]
        assert len(rows) == self.running
        return rows

    def enqueue(self, row: SequenceState) -> None:
        """Queue a row to run; older rows come first."""
        bisect.insort(self.queue, row, key=lambda waiting: waiting.age)

    def park(self, row: SequenceState) -> None:
        """Take a row that waits for its tool out of the running rows. It keeps its KV."""
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
            # 1. Find a slot. A row that was parked may still have its own.
            if row.slot is None:
                if full:
                    continue
                source = self._find(row.prompt)
                if source and source.cached < len(row.prompt):
                    continue  # another sample is computing this prompt: copy it later
                full = not self._place(row, source)
            # 2. Move it to the first slot behind the running rows.
            if row.slot is not None:
                self.queue.remove(row)
                self._swap(row.slot, self.running)
                self.running += 1
        return self.running > 0

    def _place(self, row: SequenceState, source: SequenceState | Prefix | None) -> bool:
        """Give a row a slot, with its prompt's KV if another sample has it. Returns False if there is no room."""
        # 1. Find a slot. This may evict another owner.
        slot = self._free_slot(len(row.prompt), source)
        if slot is None:
            return False
        # 2. Copy the prompt's KV. At least one token must still be fed, to get logits.
        if source is not None and source.slot is not None:
            row.cached = min(len(row.prompt), len(row.tokens) - 1)
            if slot != source.slot:
                row.cached = self.cache.copy(source.slot, slot, row.cached)
        self.owners[slot], row.slot = row, slot
        # 3. Free the prefix if no other sample waits for it.
        if isinstance(source, Prefix) and slot != source.slot and not self._awaited(row.prompt):
            self._vacate(source)
        return True

    def _free_slot(self, width: int, source: SequenceState | Prefix | None) -> int | None:
        """Return the slot for a new row of `width` tokens; None if there is no room."""
        if None in self.owners[self.running :] and self.cache.fits(width):  # 1. an empty slot
            return self.owners.index(None, self.running)
        limit = self.cache.limit(width)
        slots = len(self.owners)
        if slots < limit:  # 2. a new slot, if the memory allows it
            self._resize(min(limit, max(slots + 1, min(len(self.rows), 2 * slots))), max(self.cache.width, width))
            return slots
        if isinstance(source, Prefix):  # 3. the slot of this prompt's prefix
            return source.slot
        if self._evict(parked=self.running == 0):  # 4. another prefix's; if no row runs, a parked row's
            return self.owners.index(None, self.running)
        return None

    def make_room(self, width: int) -> None:
        """Make room for `width` tokens of a row. With a `PagedCache`, evict one owner. With a `KVCache`, widen
        every slot to 5/4 of `width`, and evict owners until the rest fit."""
        if isinstance(self.cache, PagedCache):
            self._evict(parked=True, running=True)
            return
        longest = max(len(row.prompt) + row.request.budget for row in self.rows.values())
        width = min(max(width * 5 // 4, 64), longest)
        slots = min(self.cache.limit(width), max(len(self.rows), 1))
        while sum(owner is not None for owner in self.owners) > slots:
            self._evict(parked=True, running=True)
        self._resize(slots, width)

    def _resize(self, slots: int, width: int) -> None:
        for source in range(slots, len(self.owners)):  # move their owners to empty slots that remain
            if self.owners[source] is not None:
                self._swap(source, self.owners.index(None, self.running))
        live = max((owner.cached for owner in self.owners if owner), default=0)
        self.cache.resize(slots, width, live)
        self.owners = (self.owners + [None] * slots)[:slots]

    def sort(self) -> None:
        """Sort running rows by length if attention otherwise reads over 1.2 times as many tokens."""
        if isinstance(self.cache, PagedCache):
            return  # attention reads each row up to its own length
        rows = self.running_rows()
        order = sorted(rows, key=lambda row: -row.cached)
        if _padded(rows) > 1.2 * _padded(order):
            self.counts["sorts"] += 1
            self.cache.permute([row.slot for row in order if row.slot is not None], order[0].cached)
            for slot, row in enumerate(order):
                self.owners[slot], row.slot = row, slot

    def _evict(self, parked: bool = False, running: bool = False) -> bool:
        """Evict a prefix, else (if allowed) a parked row, else (if allowed) the youngest running row."""
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
            return max(rows, key=lambda row: (row not in self.queue, row.age))  # first a row that waits for a tool
        if running:
            return max(self.running_rows(), key=lambda row: row.age)
        return None

    def _idle(self) -> list[SequenceState | Prefix]:
        return [owner for owner in self.owners[self.running :] if owner]

    def _close_gap(self, slot: int | None) -> None:
        """Take a row out of the running ones: exchange it with the last of them. Its KV is kept."""
        assert slot is not None
        self.running -= 1
        self._swap(slot, self.running)

    def _vacate(self, owner: SequenceState | Prefix) -> None:
        """Empty a slot, or keep it as a `Prefix` if waiting samples need its prompt and no other slot has it."""
        slot, owner.slot = owner.slot, None
        if slot is None:
            return
        self.owners[slot] = None
        awaited = (
            isinstance(owner, SequenceState) and owner.cached >= len(owner.prompt) and self._awaited(owner.prompt)
        )
        if awaited and self._find(owner.prompt) is None:
            self.owners[slot] = Prefix(owner.prompt, slot)
        self.cache.trim(slot, len(owner.prompt) if self.owners[slot] else 0)

    def _swap(self, a: int, b: int) -> None:
        """Exchange two slots. Either may be empty."""
        if a == b:
            return
        first, second = self.owners[a], self.owners[b]
        if first and second:
            self.cache.swap(a, b, first.cached, second.cached)
        elif first:
            self.cache.move(a, b, first.cached)
        elif second:
            self.cache.move(b, a, second.cached)
        for slot, owner in ((a, second), (b, first)):
            self.owners[slot] = owner
            if owner:
                owner.slot = slot

    def _find(self, prompt: tuple[int, ...]) -> SequenceState | Prefix | None:
        """Return the owner of a slot with this prompt, the one with the most KV; None if there is none."""
        found = [owner for owner in self.owners if owner and owner.prompt is prompt]
        return max(found, key=lambda owner: owner.cached, default=None)

    def _awaited(self, prompt: tuple[int, ...]) -> bool:
        return any(row.prompt is prompt and row.slot is None for row in self.queue)


def _padded(rows: list[SequenceState]) -> int:
    """Return the number of cached tokens that attention reads, padding included."""
    return sum((slots.stop - slots.start) * longest for slots, longest in bands([row.cached for row in rows]))
