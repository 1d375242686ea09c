"""Assign slots of the KV cache to running and parked rows.

    slot 0  running   prompt response ▸            in the first slots, without gaps: attention reads a slice
    slot 1  running   prompt▸
    slot 2  parked    prompt response call         waits for its tool, keeps its KV

A row that starts copies the KV of its prompt from another sample, if one has a slot. The state of a row is its
tokens and the number of them that are cached. An evicted row (`cached` = 0) is computed again when a slot is free.
If slots are short, parked rows are evicted first, then the youngest running row. The oldest running row is evicted
last, so every batch completes in any memory that holds its longest row.
"""

import bisect
from collections import Counter

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


class Scheduler:
    """Decide which rows run, at most `max_rows` (0: no limit), and in which slots of the empty `cache`. `counts`
    gets the numbers of `evictions` and `sorts`."""

    def __init__(self, cache: KVCache | PagedCache, max_rows: int, counts: Counter[str]) -> None:
        self.cache, self.max_rows, self.counts = cache, max_rows, counts
        self.rows: dict[int, SequenceState] = {}
        self.queue: list[SequenceState] = []  # rows that wait to run, oldest first
        self.owners: list[SequenceState | None] = []  # by slot; the first `running` are running rows
        self.running = 0

    def running_rows(self) -> list[SequenceState]:
        """Return the running rows, ordered by slot."""
        rows = [owner for owner in self.owners[: self.running] if owner]
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

    def _place(self, row: SequenceState, source: SequenceState | None) -> bool:
        """Give a row a slot, with its prompt's KV if another sample has it. Returns False if there is no room."""
        slot = self._free_slot(len(row.prompt))
        if slot is None:
            return False
        if source is not None and source.slot is not None:
            # at least one token must still be fed, to get logits
            row.cached = self.cache.copy(source.slot, slot, min(len(row.prompt), len(row.tokens) - 1))
        self.owners[slot], row.slot = row, slot
        return True

    def _free_slot(self, width: int) -> int | None:
        """Return a slot for a new row of `width` tokens; None if there is no room."""
        if None in self.owners[self.running :] and self.cache.fits(width):  # 1. an empty slot
            return self.owners.index(None, self.running)
        limit = self.cache.limit(width)
        slots = len(self.owners)
        if slots < limit:  # 2. a new slot, if the memory allows it
            self._resize(min(limit, max(slots + 1, min(len(self.rows), 2 * slots))), max(self.cache.width, width))
            return slots
        if self.running == 0 and self._evict():  # 3. if no row runs, that of a parked row
            return self.owners.index(None, self.running)
        return None

    def make_room(self, width: int) -> None:
        """Make room for `width` tokens of a row. With a `PagedCache`, evict one owner. With a `KVCache`, widen
        every slot to 5/4 of `width`, and evict owners until the rest fit."""
        if isinstance(self.cache, PagedCache):
            self._evict()
            return
        longest = max(len(row.prompt) + row.request.budget for row in self.rows.values())
        width = min(max(width * 5 // 4, 64), longest)
        slots = min(self.cache.limit(width), max(len(self.rows), 1))
        while sum(owner is not None for owner in self.owners) > slots:
            self._evict()
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

    def _evict(self) -> bool:
        """Evict a parked row, else the youngest running row. Returns False if there is none."""
        rows = [owner for owner in self.owners[self.running :] if owner] or self.running_rows()
        if not rows:
            return False
        victim = max(rows, key=lambda row: (row not in self.queue, row.age))  # first a row that waits for a tool
        self.counts["evictions"] += 1
        if victim in self.running_rows():
            self._close_gap(victim.slot)
            self.enqueue(victim)
        victim.cached = 0
        self._vacate(victim)
        return True

    def _close_gap(self, slot: int | None) -> None:
        """Take a row out of the running ones: exchange it with the last of them. Its KV is kept."""
        assert slot is not None
        self.running -= 1
        self._swap(slot, self.running)

    def _vacate(self, row: SequenceState) -> None:
        """Empty the slot of a row, if it has one."""
        slot, row.slot = row.slot, None
        if slot is not None:
            self.owners[slot] = None
            self.cache.clear(slot)

    def _swap(self, a: int, b: int) -> None:
        """Exchange two slots. Either may be empty."""
        if a == b:
            return
        first, second = self.owners[a], self.owners[b]
        self.cache.swap(a, b, first.cached if first else 0, second.cached if second else 0)
        for slot, owner in ((a, second), (b, first)):
            self.owners[slot] = owner
            if owner:
                owner.slot = slot

    def _find(self, prompt: tuple[int, ...]) -> SequenceState | None:
        """Return the owner of a slot with this prompt, the one with the most KV; None if there is none."""
        found = [owner for owner in self.owners if owner and owner.prompt is prompt]
        return max(found, key=lambda owner: owner.cached, default=None)


def _padded(rows: list[SequenceState]) -> int:
    """Return the number of cached tokens that attention reads, padding included."""
    return sum((slots.stop - slots.start) * longest for slots, longest in bands([row.cached for row in rows]))
