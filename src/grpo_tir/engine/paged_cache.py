"""Store keys and values in pages of a fixed pool, so that no tensor moves while rows grow, stop and return.

A slot has a list of pages, its block table; token t of the slot is entry `t % page` of its page `t // page`:

    slot 0   pages 5 9 2      prompt prompt response
    slot 1   pages 5 9 7      same prompt: full pages are shared, the partly filled last page is copied
    free     pages 1 3 4 6 8
    page 0   scratch: rows of a bucket that do not run write there

The interface is that of `kv_cache.KVCache`, so that `scheduler` works with either.

Shapes: P pages, K KV heads, D head dimension, S slots.
"""

from itertools import chain
from typing import Any

import torch

Pool = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer, (1, K, P * page, D) each."""
PAGE, CPU_PAGE = 128, 32
"""Tokens of a page on a GPU and on a CPU: the block size of FlexAttention's kernels. A step reads whole pages."""


class PagedCache:
    """Hold a pool of pages of `page` tokens for each layer. `allocate` sets its size."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype, page: int
    ) -> None:
        self.page, self.device, self.dtype = page, device, dtype
        empty = torch.zeros(1, kv_heads, 0, head_dim, device=device, dtype=dtype)
        self.layers: list[Pool] = [(empty, empty)] * layers
        self.tables: list[list[int]] = []  # by slot
        self.free: list[int] = []
        self.users: list[int] = []  # by page: number of slots that have it in their table

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.tables)

    @property
    def pages(self) -> int:
        """P, the scratch page included."""
        return len(self.users)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token, over all layers."""
        keys, _ = self.layers[0]
        return len(self.layers) * 2 * keys.shape[1] * keys.shape[3] * keys.dtype.itemsize

    @property
    def width(self) -> int:
        """Tokens of the widest slot."""
        return max(map(len, self.tables), default=0) * self.page

    def allocate(self, tokens: int) -> None:
        """Make the pool, with room for `tokens` tokens and the scratch page."""
        pages = 1 + -(-tokens // self.page)
        kind, _ = self.layers[0]
        shape = 1, kind.shape[1], pages * self.page, kind.shape[3]
        # zeros, not empty: masked values are still multiplied by 0, and 0 x NaN is NaN
        self.layers = [(kind.new_zeros(shape), kind.new_zeros(shape)) for _ in self.layers]
        self.free, self.users = list(range(pages - 1, 0, -1)), [0] * pages

    def fits(self, width: int) -> bool:
        """True if a slot can get `width` tokens without sharing any."""
        return len(self.free) * self.page >= width

    def limit(self, width: int) -> int:
        """Return the number of slots that the pool allows, if new ones have `width` tokens."""
        return self.slots + len(self.free) * self.page // width

    def grow(self, slot: int, length: int) -> bool:
        """Add pages until the slot holds `length` tokens. Returns False, and adds none, if too few are free."""
        table = self.tables[slot]
        missing = -(-length // self.page) - len(table)
        if missing > len(self.free):
            return False
        for _ in range(missing):
            table.append(self._take())
        return True

    def clear(self, slot: int) -> None:
        """Give back the pages of a slot. A page is free when no slot has it any more."""
        for page in self.tables[slot]:
            self.users[page] -= 1
            if not self.users[page]:
                self.free.append(page)
        self.tables[slot] = []

    def resize(self, slots: int, width: int, live: int) -> None:
        """Set the number of slots. The pool stays as it is."""
        self.tables = (self.tables + [[] for _ in range(slots)])[:slots]

    def copy(self, source: int, target: int, length: int) -> int:
        """Give `target` the first `length` tokens of `source`: full pages are shared, the last one is copied, if a
        page is free. Returns the number of tokens that it got."""
        self.clear(target)
        full, rest = divmod(length, self.page)
        for page in self.tables[source][:full]:
            self.users[page] += 1
            self.tables[target].append(page)
        if rest and self.free:
            old, new = self.tables[source][full], self._take()
            self.tables[target].append(new)
            for pool in chain(*self.layers):
                pages = pool.unflatten(2, (-1, self.page))
                pages[:, :, new] = pages[:, :, old]
            return length
        return full * self.page

    def swap(self, a: int, b: int, length_a: int, length_b: int) -> None:
        """Exchange two slots."""
        self.tables[a], self.tables[b] = self.tables[b], self.tables[a]

    def places(self, slots: list[int], positions: list[int]) -> Any:
        """Return where tokens are stored in the pool, (N,): token n at position `positions[n]` of `slots[n]`."""
        page = self.page
        entries = [self.tables[slot][at // page] * page + at % page for slot, at in zip(slots, positions)]
        return torch.tensor(entries).to(self.device)

    def write(self, layer: int, places: Any, new: torch.Tensor) -> None:
        """Store keys and values `new`, (2, K, N, D)."""
        for pool, tensor in zip(self.layers[layer], new):
            pool[0, :, places] = tensor

    def view(self, slots: list[int], length: int) -> Any:
        """Return what `read` needs to read the first `length` tokens of some slots."""
        return torch.tensor(self.table(slots, -(-length // self.page))).to(self.device), length

    def read(self, layer: int, view: Any) -> torch.Tensor:
        """Return keys and values of the slots of a view, (2, B, K, length, D). The pages are copied."""
        pages, length = view  # (B, W)
        pools = [pool[0].unflatten(1, (-1, self.page)) for pool in self.layers[layer]]  # each (K, P, page, D)
        read = torch.stack([pool[:, pages] for pool in pools])  # (2, K, B, W, page, D)
        return read.flatten(3, 4)[:, :, :, :length].transpose(1, 2)

    def table(self, slots: list[int], width: int) -> list[list[int]]:
        """Return the first `width` pages of each slot, filled up with the scratch page."""
        return [(self.tables[slot] + [0] * width)[:width] for slot in slots]

    def _take(self) -> int:
        page = self.free.pop()
        self.users[page] = 1
        return page
