"""What PyTorch's caching allocator makes of a sequence of allocations and frees on a CUDA device.

``torch.cuda.max_memory_allocated`` counts the blocks that are handed out, each rounded up to 512 bytes;
``torch.cuda.max_memory_reserved`` counts the segments behind them. The rules that lead from one to the other
are those of ``c10/cuda/CUDACachingAllocator.cpp``, whose functions are named where each rule is applied, with
the constants that torch 2.13 ships in ``include/c10/core/AllocatorConfig.h`` and its default settings: no
``max_split_size_mb``, no rounding to powers of two, no garbage collection.

One device: a block that is freed can be handed out at once, but for streams that are said to lag. CUDA graphs
and private pools are left out. Where the driver puts a segment is not known; here a later segment has a
higher address, which matters only between free blocks of exactly the same size.

Knows nothing of tensors, of what asks for memory, and of what lies on the device besides the allocator's
segments (see :mod:`.overheads`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

Event: TypeAlias = tuple[int, int]
"""A block's id and its bytes: more than 0 allocates under that id, 0 frees it."""

MIN_BLOCK_BYTES = 512
"""``kMinBlockSize``: sizes are rounded up to a multiple of it, and nothing smaller is split off."""
SMALL_BYTES = 2**20
"""``kSmallSize``: up to here a block comes from the pool of small ones."""
SMALL_SEGMENT_BYTES = 2 * 2**20
"""``kSmallBuffer``: every segment of the small pool, and a page of its expandable segment."""
LARGE_SEGMENT_BYTES = 20 * 2**20
"""``large_segment_size()`` (``kLargeBuffer`` in older releases): the segment for a block below
:data:`MIN_LARGE_BYTES`, and a page of the large pool's expandable segment."""
MIN_LARGE_BYTES = 10 * 2**20
"""``kMinLargeAlloc``: from here on a block gets a segment of its own size …"""
ROUND_LARGE_BYTES = 2 * 2**20
"""``kRoundLarge``: … rounded up to a multiple of this."""

_ADDRESS_SPACE_BYTES = 2**62
"""Of an expandable segment. PyTorch takes 9/8 of the device's memory; here it never runs out."""


class OutOfMemory(Exception):
    """A block does not fit, even after every unused segment was given back.

    Args:
        requested_bytes: of the block, as it was asked for.
        allocated_bytes: handed out at that moment.
        reserved_bytes: held at that moment, after the unused segments were given back.
        capacity_bytes: the most that may be held.
    """

    def __init__(
        self, *, requested_bytes: int, allocated_bytes: int, reserved_bytes: int, capacity_bytes: int
    ) -> None:
        super().__init__(
            f"{requested_bytes} bytes do not fit: {allocated_bytes} bytes are allocated and "
            f"{reserved_bytes} reserved of {capacity_bytes}"
        )
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
        self.capacity_bytes = capacity_bytes


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a sequence of events came to.

    Args:
        peak_allocated_bytes: as ``torch.cuda.max_memory_allocated``.
        peak_reserved_bytes: as ``torch.cuda.max_memory_reserved``.
        final_allocated_bytes: as ``torch.cuda.memory_allocated`` after the last event.
        final_reserved_bytes: as ``torch.cuda.memory_reserved`` after the last event.
        retried: as ``num_alloc_retries``: how often unused segments were given back to make room.
        fits: False where a block found no room; the events after it were not replayed.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    final_allocated_bytes: int
    final_reserved_bytes: int
    retried: int
    fits: bool


class _Block:
    """A range of a segment: handed out, free, or (in an expandable segment) not backed by memory."""

    __slots__ = ("address", "allocated", "following", "mapped", "previous", "size")

    def __init__(self, address: int, size: int, *, mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.allocated = False
        self.mapped = mapped
        self.previous: _Block | None = None
        self.following: _Block | None = None

    def split(self, size: int) -> _Block:
        """Keep the first bytes and return the rest as a block of its own, linked in behind."""
        rest = _Block(self.address + size, self.size - size, mapped=self.mapped)
        rest.previous, rest.following = self, self.following
        if rest.following is not None:
            rest.following.previous = rest
        self.following = rest
        self.size = size
        return rest

    def absorb(self, neighbour: _Block) -> None:
        """Take over the range of a block that lies directly before or behind."""
        if neighbour is self.previous:
            self.address = neighbour.address
            self.previous = neighbour.previous
            if self.previous is not None:
                self.previous.following = self
        else:
            self.following = neighbour.following
            if self.following is not None:
                self.following.previous = self
        self.size += neighbour.size


class _Pool:
    """Blocks of one size class in segments that ``cudaMalloc`` returned.

    Free blocks are sorted by size, then address: the order in which ``BlockComparatorSize`` searches them.
    """

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.reserved_bytes = 0
        # should_split: the large pool splits where more than kSmallSize remains.
        self.least_rest = MIN_BLOCK_BYTES if small else SMALL_BYTES + 1
        self._free: list[tuple[int, int, _Block]] = []
        self._next_address = 0

    def take(self, size: int) -> _Block | None:
        """The smallest free block that is large enough, out of the list; None where there is none.

        ``get_free_block``.
        """
        at = bisect_left(self._free, (size,))
        return self._free.pop(at)[2] if at < len(self._free) else None

    def grow(self, size: int, room: int | None) -> _Block | None:
        """A free block of at least that size in new memory, not in the list; None beyond ``room`` bytes.

        ``get_allocation_size`` and ``alloc_block``.
        """
        segment_bytes = _segment_bytes(size)
        if room is not None and segment_bytes > room:
            return None
        block = _Block(self._next_address, segment_bytes)
        self._next_address += segment_bytes
        self.reserved_bytes += segment_bytes
        return block

    def hand_out(self, block: _Block, size: int) -> None:
        """Mark a block as handed out, less what is worth splitting off. ``alloc_found_block``."""
        if block.size - size >= self.least_rest:
            self._add(block.split(size))
        block.allocated = True

    def give_back(self, block: _Block) -> None:
        """Free a block and join it with the free ones beside it. ``free_block``."""
        block.allocated = False
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.mapped and not neighbour.allocated:
                self._drop(neighbour)
                block.absorb(neighbour)
        self._add(block)

    def release(self) -> None:
        """Return segments without a block in use to the device. ``release_blocks``."""
        kept = []
        for entry in self._free:
            block = entry[2]
            if block.previous is None and block.following is None:
                self.reserved_bytes -= block.size
            else:
                kept.append(entry)
        self._free = kept

    def _add(self, block: _Block) -> None:
        insort(self._free, (block.size, block.address, block))

    def _drop(self, block: _Block) -> None:
        del self._free[bisect_left(self._free, (block.size, block.address))]


class _ExpandablePool(_Pool):
    """Blocks of one size class in a single segment, which is backed by memory page by page.

    ``Note [Expandable Segments]``: addresses are reserved far beyond what is used, pages are mapped at the
    lowest address where a block finds room, and a page without a block in use can be unmapped again.
    """

    def __init__(self, *, small: bool) -> None:
        super().__init__(small=small)
        self.least_rest = MIN_BLOCK_BYTES
        self._page = SMALL_SEGMENT_BYTES if small else LARGE_SEGMENT_BYTES
        tail = _Block(0, _ADDRESS_SPACE_BYTES // self._page * self._page, mapped=False)
        self._unmapped: list[tuple[int, _Block]] = [(0, tail)]

    def take(self, size: int) -> _Block | None:
        """As in a pool of ordinary segments; a block that can grow counts with all that it can grow to."""
        free = self._free
        at = bisect_left(free, (size,))
        if at == len(free):
            return None
        while at + 1 < len(free) and _expandable_bytes(free[at + 1][2]) < _expandable_bytes(free[at][2]):
            at += 1
        return free.pop(at)[2]

    def grow(self, size: int, room: int | None) -> _Block | None:
        """Map pages until a block of that size is free at the lowest address that has room for one.

        ``try_allocate_expandable_block``. Pages mapped before ``room`` ran out stay, as free blocks.
        """
        block: _Block | None = self._lowest(size)
        wanted = size
        while block is not None:
            if not block.mapped:
                before = self.reserved_bytes
                if not self._map(block, min(block.size, wanted), room):
                    return None
                if room is not None:
                    room -= self.reserved_bytes - before
            if block.size >= size:
                self._drop(block)
                return block
            wanted = size - block.size
            block = block.following
        raise AssertionError("the address space of an expandable segment ran out")

    def release(self) -> None:
        """Unmap every page without a block in use. ``unmap_block``, for all free blocks."""
        page = self._page
        for _, _, block in list(self._free):
            begin = -(-block.address // page) * page
            end = (block.address + block.size) // page * page
            if begin >= end:
                continue
            self._drop(block)
            pages = block if begin == block.address else block.split(begin - block.address)
            if pages is not block:
                self._add(block)
            if pages.size > end - begin:
                self._add(pages.split(end - begin))
            self.reserved_bytes -= pages.size
            pages.mapped = False
            for neighbour in (pages.previous, pages.following):
                if neighbour is not None and not neighbour.mapped:
                    self._drop_unmapped(neighbour)
                    pages.absorb(neighbour)
            self._add_unmapped(pages)

    def _lowest(self, size: int) -> _Block:
        """The first of a run of free or unmapped blocks that has room. ``find_expandable_block``."""
        for _, unmapped in self._unmapped:
            first = unmapped.previous
            if first is None or first.allocated:
                first = unmapped
            found, block = 0, first
            while found < size and not block.allocated:
                found += block.size
                if block.following is None:
                    break
                block = block.following
            if found >= size:
                return first
        raise AssertionError("the address space of an expandable segment ran out")

    def _map(self, block: _Block, size: int, room: int | None) -> bool:
        """Back the front of an unmapped block by memory and join it with free neighbours. ``map_block``."""
        mapped_bytes = -(-size // self._page) * self._page
        if room is not None and mapped_bytes > room:
            return False
        self._drop_unmapped(block)
        if mapped_bytes < block.size:
            self._add_unmapped(block.split(mapped_bytes))
        block.mapped = True
        self.reserved_bytes += mapped_bytes
        self.give_back(block)
        return True

    def _add_unmapped(self, block: _Block) -> None:
        insort(self._unmapped, (block.address, block))

    def _drop_unmapped(self, block: _Block) -> None:
        del self._unmapped[bisect_left(self._unmapped, (block.address,))]


class CachingAllocator:
    """The allocator of one device, to be told of each allocation and free in turn.

    Args:
        expandable_segments: as ``PYTORCH_ALLOC_CONF=expandable_segments:True``.
        capacity_bytes: what the device has for segments, that is without the CUDA context and other
            processes; None is unlimited.
        lagging: streams whose blocks another stream may still use when they are freed (``record_stream``):
            each can be handed out again when the next one of its stream is freed.
    """

    def __init__(
        self,
        *,
        expandable_segments: bool = False,
        capacity_bytes: int | None = None,
        lagging: Collection[int] = (),
    ) -> None:
        if capacity_bytes is not None and capacity_bytes < 0:
            raise ValueError(f"capacity_bytes is {capacity_bytes}: give 0 or more, or None for no limit")
        self._kind = _ExpandablePool if expandable_segments else _Pool
        self._pools: dict[tuple[int, bool], _Pool] = {}
        self._capacity_bytes = capacity_bytes
        self._live: dict[int, tuple[_Block, _Pool, int] | None] = {}
        self._lagging = lagging
        self._used_elsewhere: dict[int, tuple[_Block, _Pool]] = {}
        self._allocated_bytes = 0
        self._peak_allocated_bytes = 0
        self._peak_reserved_bytes = 0
        self._retried = 0

    @property
    def allocated_bytes(self) -> int:
        return self._allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        return sum(pool.reserved_bytes for pool in self._pools.values())

    @property
    def peak_allocated_bytes(self) -> int:
        """The most that was allocated at once since the start or :meth:`reset_peaks`."""
        return self._peak_allocated_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The most that was reserved at once since the start or :meth:`reset_peaks`."""
        return self._peak_reserved_bytes

    @property
    def retried(self) -> int:
        """How often unused segments were given back to make room, in vain or not."""
        return self._retried

    def allocate(self, block_id: int, size_bytes: int, *, stream: int = 0) -> None:
        """Allocate a block. One of 0 bytes takes no memory, as in PyTorch, and must be freed like others.

        Each stream has pools of its own.

        Raises:
            OutOfMemory: it does not fit; the allocator can be used on, as after PyTorch's.
            ValueError: the id is in use, or the size is negative.
        """
        if block_id in self._live:
            raise ValueError(f"block {block_id} is allocated already: free it first, or use another id")
        if size_bytes <= 0:
            if size_bytes < 0:
                raise ValueError(f"block {block_id} has {size_bytes} bytes: give 0 or more")
            self._live[block_id] = None
            return
        size = rounded(size_bytes)
        pool = self._pool(size, stream)
        block = pool.take(size) or self._grow(pool, size)
        if block is None:
            raise OutOfMemory(
                requested_bytes=size_bytes,
                allocated_bytes=self._allocated_bytes,
                reserved_bytes=self.reserved_bytes,
                capacity_bytes=self._capacity_bytes or 0,
            )
        pool.hand_out(block, size)
        self._live[block_id] = block, pool, stream
        # The whole block counts, also what was not worth splitting off.
        self._allocated_bytes += block.size
        if self._allocated_bytes > self._peak_allocated_bytes:
            self._peak_allocated_bytes = self._allocated_bytes

    def free(self, block_id: int) -> None:
        """Free a block; its memory stays reserved.

        Raises:
            ValueError: no block has this id.
        """
        if block_id not in self._live:
            raise ValueError(f"block {block_id} is not allocated: it was never, or was freed before")
        if held := self._live.pop(block_id):
            block, pool, stream = held
            self._allocated_bytes -= block.size
            if stream in self._lagging:
                self._wait_for(stream)
                self._used_elsewhere[stream] = block, pool
            else:
                pool.give_back(block)

    def _wait_for(self, stream: int) -> None:
        """Until others have done with what was freed last in this stream."""
        if freed := self._used_elsewhere.pop(stream, None):
            block, pool = freed
            pool.give_back(block)

    def empty_cache(self) -> None:
        """Return what no block uses to the device, as ``torch.cuda.empty_cache``."""
        for stream in list(self._used_elsewhere):
            self._wait_for(stream)
        for pool in self._pools.values():
            pool.release()

    def reset_peaks(self) -> None:
        """Start the peaks anew at what is held now, as ``torch.cuda.reset_peak_memory_stats``."""
        self._peak_allocated_bytes = self._allocated_bytes
        self._peak_reserved_bytes = self.reserved_bytes

    def _pool(self, size: int, stream: int) -> _Pool:
        key = stream, size <= SMALL_BYTES
        if key not in self._pools:
            self._pools[key] = self._kind(small=key[1])
        return self._pools[key]

    def _grow(self, pool: _Pool, size: int) -> _Block | None:
        """A block in new memory; where there is none left, unused segments are given back first."""
        block = pool.grow(size, self._room())
        if block is None:
            self._note_reserved()
            self.empty_cache()
            self._retried += 1
            block = pool.grow(size, self._room())
        self._note_reserved()
        return block

    def _room(self) -> int | None:
        return None if self._capacity_bytes is None else self._capacity_bytes - self.reserved_bytes

    def _note_reserved(self) -> None:
        self._peak_reserved_bytes = max(self._peak_reserved_bytes, self.reserved_bytes)


def replay(
    events: Iterable[Event],
    *,
    streams: Mapping[int, int] = MappingProxyType({}),
    lagging: Collection[int] = (),
    expandable_segments: bool = False,
    capacity_bytes: int | None = None,
) -> Reserved:
    """What the allocator holds at most, and at the end, when it starts empty and meets these events in turn.

    Args:
        events: see :data:`Event`. Blocks that are never freed are still allocated at the end.
        streams: blocks that another stream than the first allocates, and its number.
        lagging: see :class:`CachingAllocator`.
        expandable_segments: as ``PYTORCH_ALLOC_CONF=expandable_segments:True``.
        capacity_bytes: what the device has for segments; None is unlimited.

    Raises:
        ValueError: an event frees what is not allocated, allocates an id twice, or has a negative size.
    """
    allocator = CachingAllocator(
        expandable_segments=expandable_segments, capacity_bytes=capacity_bytes, lagging=lagging
    )
    fits = True
    try:
        for block_id, size_bytes in events:
            if size_bytes:
                allocator.allocate(block_id, size_bytes, stream=streams.get(block_id, 0))
            else:
                allocator.free(block_id)
    except OutOfMemory:
        fits = False
    return Reserved(
        peak_allocated_bytes=allocator.peak_allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        final_allocated_bytes=allocator.allocated_bytes,
        final_reserved_bytes=allocator.reserved_bytes,
        retried=allocator.retried,
        fits=fits,
    )


def rounded(size_bytes: int) -> int:
    """What an allocation of this many bytes takes of a segment."""
    return -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


def _segment_bytes(size: int) -> int:
    """What ``cudaMalloc`` is asked for, for a block that no free one can hold. ``get_allocation_size``."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def _expandable_bytes(block: _Block) -> int:
    """A free block's size with that of the unmapped one behind it, which it can grow into."""
    following = block.following
    return block.size if following is None or following.mapped else block.size + following.size
