"""The model of PyTorch's caching allocator: hand-worked scenarios, a slow second model, and invariants."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.optimizer.estimates.allocator import (
    CachingAllocator,
    OutOfMemory,
    Reserved,
    replay,
)

KIB, MIB, GIB = 2**10, 2**20, 2**30
MIN_BLOCK = 512
KINDS = pytest.mark.parametrize("expandable", [False, True], ids=["cudaMalloc", "expandable"])


def allocator_with(*sizes, expandable=False, capacity=None):
    """An allocator in which blocks 0, 1, … of these sizes are allocated."""
    allocator = CachingAllocator(expandable_segments=expandable, capacity_bytes=capacity)
    for block_id, size in enumerate(sizes):
        allocator.allocate(block_id, size)
    return allocator


class TestRounding:
    """``round_size`` and ``get_allocation_size``."""

    @pytest.mark.parametrize(
        ("asked", "allocated", "reserved"),
        [
            (1, 512, 2 * MIB),
            (512, 512, 2 * MIB),
            (513, 1024, 2 * MIB),
            (MIB, MIB, 2 * MIB),
            # Between 1 and 10 MiB a block is split off 20 MiB.
            (MIB + 1, MIB + 512, 20 * MIB),
            (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
            # From 10 MiB on it has its own segment, in steps of 2 MiB. What is left over is at most 2 MiB:
            # it is split off if it is more than 1 MiB, and else part of the block.
            (10 * MIB, 10 * MIB, 10 * MIB),
            (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
            (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
            (11 * MIB, 12 * MIB, 12 * MIB),
            (25 * MIB, 26 * MIB, 26 * MIB),
        ],
    )
    def test_of_a_first_block(self, asked, allocated, reserved):
        assert replay([(0, asked)]) == Reserved(allocated, reserved, allocated, reserved, 0, True)

    def test_a_block_that_is_freed_stays_reserved(self):
        assert replay([(0, 30 * MIB), (0, 0)]) == Reserved(30 * MIB, 30 * MIB, 0, 30 * MIB, 0, True)

    def test_a_block_of_nothing_takes_nothing(self):
        allocator = allocator_with(0)
        assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0)
        allocator.free(0)


class TestSegments:
    """``get_free_block``, ``should_split`` and ``free_block`` with segments of ``cudaMalloc``."""

    def test_small_blocks_share_segments_of_2_mib(self):
        assert replay([(i, 512) for i in range(4096)]).peak_reserved_bytes == 2 * MIB
        assert replay([(i, 512) for i in range(4097)]).peak_reserved_bytes == 4 * MIB

    def test_two_small_blocks_of_more_than_half_a_mib_share_one_in_three(self):
        assert allocator_with(700 * KIB, 700 * KIB).reserved_bytes == 2 * MIB
        assert allocator_with(700 * KIB, 700 * KIB, 700 * KIB).reserved_bytes == 4 * MIB

    def test_large_blocks_below_10_mib_share_segments_of_20_mib(self):
        assert allocator_with(9 * MIB, 9 * MIB).reserved_bytes == 20 * MIB
        # Of 2 MiB that are left, 1 is not enough for the pool of large blocks' least block …
        assert allocator_with(9 * MIB, 9 * MIB, 2 * MIB).reserved_bytes == 20 * MIB
        # … and a small block never comes from a large segment.
        assert allocator_with(9 * MIB, 9 * MIB, MIB).reserved_bytes == 22 * MIB

    def test_a_large_rest_of_up_to_1_mib_is_handed_out_with_the_block(self):
        allocator = allocator_with(19 * MIB + 512, 20 * MIB)
        assert allocator.allocated_bytes == 40 * MIB  # 20 MiB each: the first one's rest is below 1 MiB
        allocator.free(1)
        allocator.allocate(2, 19 * MIB - 512)
        assert allocator.allocated_bytes == 20 * MIB + 19 * MIB - 512
        assert allocator.reserved_bytes == 40 * MIB

    def test_the_smallest_free_block_that_is_large_enough_is_taken(self):
        allocator = allocator_with(40 * MIB, 30 * MIB, 50 * MIB)
        for block_id in range(3):
            allocator.free(block_id)
        allocator.allocate(3, 30 * MIB)
        allocator.allocate(4, 40 * MIB)
        allocator.allocate(5, 50 * MIB)
        assert allocator.reserved_bytes == 120 * MIB

    def test_neighbours_that_are_free_become_one_block(self):
        allocator = allocator_with(5 * MIB, 5 * MIB, 5 * MIB, 5 * MIB)
        allocator.free(1)
        allocator.free(3)
        allocator.allocate(4, 9 * MIB)
        assert allocator.reserved_bytes == 40 * MIB  # two holes of 5 MiB are no hole of 9
        allocator.free(4)
        allocator.free(2)
        allocator.allocate(5, 15 * MIB)
        assert allocator.reserved_bytes == 40 * MIB  # three neighbours are one of 15

    def test_growing_blocks_fragment_ordinary_segments(self):
        """The sequence of ``Note [Expandable Segments]``: each size is a little more than the last."""
        grow = [event for i in range(1, 11) for event in ((i, (100 + 2 * i) * MIB), (i, 0))]
        assert replay(grow).peak_reserved_bytes == sum((100 + 2 * i) * MIB for i in range(1, 11))
        assert replay(grow, expandable_segments=True).peak_reserved_bytes == 120 * MIB


class TestExpandableSegments:
    """``Note [Expandable Segments]``: pages of 2 MiB for small blocks and of 20 MiB for large ones."""

    @pytest.mark.parametrize(
        ("asked", "reserved"),
        [
            (512, 2 * MIB),
            (MIB, 2 * MIB),
            (MIB + 512, 20 * MIB),
            (20 * MIB, 20 * MIB),
            (20 * MIB + 512, 40 * MIB),
            (110 * MIB, 120 * MIB),
        ],
    )
    def test_a_first_block_maps_whole_pages(self, asked, reserved):
        assert replay([(0, asked)], expandable_segments=True).peak_reserved_bytes == reserved

    def test_large_blocks_are_split_down_to_512_bytes(self):
        assert allocator_with(11 * MIB, 8 * MIB, MIB + 512, expandable=True).reserved_bytes == 40 * MIB
        allocator = allocator_with(19 * MIB + 512, expandable=True)
        assert allocator.allocated_bytes == 19 * MIB + 512

    def test_a_block_uses_up_the_free_tail_before_more_is_mapped(self):
        allocator = allocator_with(30 * MIB, 30 * MIB, 30 * MIB, 30 * MIB, expandable=True)
        assert allocator.reserved_bytes == 120 * MIB

    def test_the_block_before_the_unmapped_range_is_taken_last(self):
        """It counts with all that it can grow to; the smaller fit would be the last 10 MiB."""
        allocator = allocator_with(15 * MIB, 15 * MIB, expandable=True)  # 10 MiB are left at the end
        allocator.free(0)
        allocator.allocate(2, 9 * MIB)
        allocator.allocate(3, 10 * MIB)
        assert allocator.reserved_bytes == 40 * MIB
        allocator.allocate(4, 6 * MIB)
        assert allocator.reserved_bytes == 40 * MIB

    def test_only_whole_pages_without_a_block_are_returned(self):
        allocator = allocator_with(30 * MIB, 20 * MIB, 30 * MIB, expandable=True)  # pages to 80 MiB
        allocator.free(0)
        allocator.free(2)
        allocator.empty_cache()
        # In use: 30–50 MiB. The first page, and that from 60 MiB on, hold nothing.
        assert allocator.reserved_bytes == 40 * MIB
        allocator.allocate(3, 30 * MIB)
        # It fits where the first page was, together with the 10 MiB of the second.
        assert allocator.reserved_bytes == 60 * MIB
        allocator.free(3)
        allocator.free(1)
        allocator.empty_cache()
        assert allocator.reserved_bytes == 0


class TestLimit:
    def test_unused_segments_are_returned_before_it_fails(self):
        """``test_out_of_memory_retry`` in PyTorch's test/test_cuda.py: two halves of a device."""
        size = 40 * MIB
        allocator = CachingAllocator(capacity_bytes=2 * size - 1)
        allocator.allocate(0, size)
        with pytest.raises(OutOfMemory, match="41943040 bytes do not fit"):
            allocator.allocate(1, size)
        allocator.free(0)
        allocator.allocate(1, size)
        assert allocator.reserved_bytes == size
        assert allocator.retried == 1

    @KINDS
    def test_a_retry_is_counted(self, expandable):
        events = [(0, 40 * MIB), (0, 0), (1, MIB // 2), (2, 100 * MIB)]
        got = replay(events, capacity_bytes=110 * MIB, expandable_segments=expandable)
        assert got.fits
        # A single segment grows by what is missing; segments of cudaMalloc have to be exchanged.
        assert got.retried == (0 if expandable else 1)
        assert got.peak_reserved_bytes == 102 * MIB
        assert got.final_allocated_bytes == 100 * MIB + MIB // 2

    def test_segments_that_are_split_cannot_be_returned(self):
        keep = [(0, 9 * MIB), (1, 9 * MIB), (0, 0)]
        assert not replay([*keep, (2, 30 * MIB)], capacity_bytes=40 * MIB).fits
        assert replay([*keep, (2, 20 * MIB)], capacity_bytes=40 * MIB).fits

    def test_expandable_segments_fit_where_others_do_not(self):
        events = [(0, 40 * MIB), (1, 40 * MIB), (2, 20 * MIB), (1, 0), (0, 0), (3, 70 * MIB)]
        assert replay(events, capacity_bytes=100 * MIB, expandable_segments=True).retried == 0
        split = [(0, 9 * MIB), (1, 9 * MIB), (0, 0), (2, 9 * MIB), (3, 9 * MIB), (2, 0), (4, 50 * MIB)]
        # A single segment has 13 of 40 MiB free at its end, and two pages more make 50.
        assert replay(split, capacity_bytes=80 * MIB, expandable_segments=True).fits
        assert not replay(split, capacity_bytes=80 * MIB).fits

    def test_pages_that_were_mapped_before_it_failed_stay(self):
        allocator = allocator_with(20 * MIB, 20 * MIB, 20 * MIB, expandable=True, capacity=80 * MIB)
        allocator.free(0)
        allocator.empty_cache()
        with pytest.raises(OutOfMemory) as caught:
            allocator.allocate(3, 60 * MIB)
        assert caught.value.reserved_bytes == 40 * MIB
        assert caught.value.capacity_bytes == 80 * MIB
        allocator.allocate(3, 40 * MIB)
        assert allocator.reserved_bytes == 80 * MIB

    def test_pages_that_were_mapped_in_vain_count_at_the_peak(self):
        allocator = allocator_with(20 * MIB, 20 * MIB, expandable=True, capacity=85 * MIB)
        allocator.free(0)
        allocator.empty_cache()
        allocator.free(1)
        allocator.reset_peaks()
        # The first page is unmapped, the second free. 100 MiB from the front: one page and then three more,
        # which are 20 MiB too many; both pages are returned, and even then 100 do not fit into 85.
        with pytest.raises(OutOfMemory):
            allocator.allocate(2, 100 * MIB)
        assert allocator.peak_reserved_bytes == 40 * MIB
        assert allocator.reserved_bytes == 0

    def test_a_replay_stops_where_it_does_not_fit(self):
        got = replay([(0, 30 * MIB), (1, 30 * MIB), (0, 0), (2, 4 * MIB)], capacity_bytes=40 * MIB)
        assert got == Reserved(30 * MIB, 30 * MIB, 30 * MIB, 30 * MIB, 1, False)

    @KINDS
    def test_an_absurd_size_does_not_fit(self, expandable):
        assert not replay([(0, 2**60)], capacity_bytes=80 * GIB, expandable_segments=expandable).fits

    def test_nothing_fits_into_nothing(self):
        assert not replay([(0, 1)], capacity_bytes=0).fits
        assert replay([], capacity_bytes=0) == Reserved(0, 0, 0, 0, 0, True)


class TestPhases:
    def test_peaks_start_anew_at_what_is_held(self):
        allocator = allocator_with(100 * MIB, 50 * MIB)
        allocator.free(0)
        allocator.reset_peaks()
        assert allocator.peak_allocated_bytes == 50 * MIB
        assert allocator.peak_reserved_bytes == 150 * MIB
        allocator.allocate(2, 20 * MIB)
        assert allocator.peak_allocated_bytes == 70 * MIB
        assert allocator.peak_reserved_bytes == 150 * MIB

    def test_an_emptied_cache_lowers_what_is_reserved_but_no_peak(self):
        allocator = allocator_with(100 * MIB, 50 * MIB)
        allocator.free(0)
        allocator.empty_cache()
        assert allocator.reserved_bytes == 50 * MIB
        assert allocator.peak_reserved_bytes == 150 * MIB


class TestPublished:
    """Figures that somebody printed on a real device, from code short enough to know each allocation."""

    def test_two_convolutions_and_a_group_norm(self):
        """pytorch/pytorch#34330: 75.497472M, 180.355072M, 285.212672M and, with ``empty_cache``, the same.

        In float32: weights of Conv2d(100, 200, 3) and Conv2d(200, 200, 3) with biases, 2 x 100 x 256 x 256 of
        input, and 2 x 200 x 256 x 256 of output from each layer.
        """
        z = 2 * 200 * 256 * 256 * 4
        allocator = allocator_with(200 * 100 * 9 * 4, 800, 200 * 200 * 9 * 4, 800, 2 * 100 * 256 * 256 * 4)
        assert allocator.reserved_bytes == 75_497_472
        allocator.allocate(10, z)
        assert allocator.reserved_bytes == 180_355_072
        allocator.allocate(11, z)
        assert allocator.reserved_bytes == 285_212_672
        allocator.free(10)
        allocator.empty_cache()
        allocator.allocate(12, z)
        assert allocator.reserved_bytes == 285_212_672

    def test_a_convolution_and_two_poolings(self):
        """pytorch/pytorch#69526: 294 MB allocated and 296 reserved before the forward pass, 5014 after it.

        Float32 outputs of Conv2d(3, 28, 3) and two MaxPool2d(3, 2, 1), each with int64 indices that it drops.
        """
        allocator = allocator_with(28 * 27 * 4, 28 * 4, 512 * 3 * 224 * 224 * 4)
        assert allocator.allocated_bytes // MIB == 294
        assert allocator.reserved_bytes == 296 * MIB
        allocator.allocate(10, 512 * 28 * 222 * 222 * 4)
        for block_id, before, side in ((20, 10, 111), (30, 20, 56)):
            allocator.allocate(block_id, 512 * 28 * side * side * 4)
            allocator.allocate(block_id + 1, 512 * 28 * side * side * 8)
            allocator.free(block_id + 1)
            allocator.free(before)
        assert allocator.reserved_bytes == 5014 * MIB

    @KINDS
    def test_cycles_with_a_block_that_stays(self, expandable):
        """pytorch/pytorch#193400: under 500 MiB reserved by default, and with expandable segments alone.

        Each cycle allocates 91 and 45.5 MiB, then 2 MiB that stay, and frees the first two; 66 to 266 MiB are
        allocated after it.
        """
        allocator = allocator_with(64 * MIB, expandable=expandable)
        for cycle in range(101):
            allocator.allocate(-1, 91 * MIB)
            allocator.allocate(-2, 91 * MIB // 2)
            allocator.allocate(cycle + 1, 2 * MIB)
            allocator.free(-1)
            allocator.free(-2)
            if cycle % 20 == 0:
                assert allocator.allocated_bytes == (66 + 2 * cycle) * MIB
        assert 266 * MIB < allocator.peak_reserved_bytes < 500 * MIB


class TestBadInput:
    def test_an_id_twice(self):
        with pytest.raises(ValueError, match="block 7 is allocated already"):
            replay([(7, 1), (7, 1)])

    def test_a_free_of_nothing(self):
        with pytest.raises(ValueError, match="block 7 is not allocated"):
            replay([(7, 1), (7, 0), (7, 0)])

    def test_negative_sizes(self):
        with pytest.raises(ValueError, match="-1 bytes"):
            replay([(7, -1)])
        with pytest.raises(ValueError, match="capacity_bytes is -1"):
            CachingAllocator(capacity_bytes=-1)


class SlowModel:
    """The same rules once more, as one flat list of ranges that is searched from the front each time.

    Written from the C++ source apart from the model under test: they share no code and no data structure.
    """

    def __init__(self, expandable, capacity):
        self.expandable, self.capacity = expandable, capacity
        self.pools = {True: [], False: []}  # small? -> [address, size, state, segment], sorted by address
        if expandable:
            for pool in self.pools.values():
                pool.append([0, 2**45 // (20 * MIB) * 20 * MIB, "unmapped", 0])
        self.live = {}
        self.end = 0
        self.peaks = [0, 0]
        self.retried = 0

    def page(self, small):
        return 2 * MIB if small else 20 * MIB

    def total(self, *states):
        return sum(r[1] for pool in self.pools.values() for r in pool if r[2] in states)

    def reserved(self):
        return self.total("free", "used")

    def fuse(self, pool):
        at = 0
        while at + 1 < len(pool):
            one, two = pool[at], pool[at + 1]
            if one[2] == two[2] != "used" and one[3] == two[3]:
                one[1] += two[1]
                del pool[at + 1]
            else:
                at += 1

    def cut(self, pool, at, size, rest_state):
        address, whole, _, segment = pool[at]
        if whole > size:
            pool[at][1] = size
            pool.insert(at + 1, [address + size, whole - size, rest_state, segment])

    def find(self, pool, size):
        fits = sorted((r[1], r[0], at) for at, r in enumerate(pool) if r[2] == "free" and r[1] >= size)
        if not fits:
            return None
        if self.expandable:

            def grown(entry):
                behind = pool[entry[2] + 1] if entry[2] + 1 < len(pool) else None
                return entry[0] + (behind[1] if behind and behind[2] == "unmapped" else 0)

            while len(fits) > 1 and grown(fits[1]) < grown(fits[0]):
                fits.pop(0)
        return fits[0][2]

    def extend(self, small, pool, size):
        """New memory for a block: its place in the pool, or None beyond the capacity."""
        limit = self.capacity if self.capacity is not None else 2**60
        if not self.expandable:
            segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
            if self.reserved() + segment > limit:
                return None
            pool.append([self.end, segment, "free", self.end])
            self.end += segment
            return len(pool) - 1
        for at in range(len(pool)):
            if pool[at][2] == "used" or (pool[at][2] == "free" and pool[at + 1][2] == "used"):
                continue
            if at and pool[at - 1][2] == "free":
                continue  # seen with the range before
            run, last = 0, at
            while last < len(pool) and pool[last][2] != "used" and run < size:
                run += pool[last][1]
                last += 1
            if run < size:
                continue
            while pool[at][2] == "unmapped" or pool[at][1] < size:
                hole = at if pool[at][2] == "unmapped" else at + 1
                missing = size if hole == at else size - pool[at][1]
                pages = -(-min(missing, pool[hole][1]) // self.page(small)) * self.page(small)
                if self.reserved() + pages > limit:
                    return None
                self.cut(pool, hole, pages, "unmapped")
                pool[hole][2] = "free"
                self.note()
                self.fuse(pool)
            return at
        raise AssertionError

    def release(self):
        for small, pool in self.pools.items():
            if not self.expandable:
                shared = [r[3] for r in pool]
                pool[:] = [r for r in pool if r[2] == "used" or shared.count(r[3]) > 1]
                continue
            page, at = self.page(small), 0
            while at < len(pool):
                address, size, state, _ = pool[at]
                begin, end = -(-address // page) * page, (address + size) // page * page
                if state == "free" and begin < end:
                    if begin > address:
                        self.cut(pool, at, begin - address, "free")
                        at += 1
                    self.cut(pool, at, end - begin, "free")
                    pool[at][2] = "unmapped"
                at += 1
            self.fuse(pool)

    def note(self):
        self.peaks = [max(self.peaks[0], self.total("used")), max(self.peaks[1], self.reserved())]

    def allocate(self, block_id, asked):
        size = max(512, -(-asked // 512) * 512)
        small = size <= MIB
        pool = self.pools[small]
        at = self.find(pool, size)
        if at is None:
            at = self.extend(small, pool, size)
        if at is None:
            self.release()
            self.retried += 1
            at = self.extend(small, pool, size)
            if at is None:
                return False
        rest = pool[at][1] - size
        if rest >= 512 and (small or self.expandable or rest > MIB):
            self.cut(pool, at, size, "free")
        pool[at][2] = "used"
        self.live[block_id] = (small, pool[at])
        self.note()
        return True

    def free(self, block_id):
        small, record = self.live.pop(block_id)
        record[2] = "free"
        self.fuse(self.pools[small])


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(9 * MIB, 90 * MIB),
    st.sampled_from([511, 512, 513, MIB, MIB + 1, 10 * MIB, 20 * MIB, 40 * MIB, 40 * MIB + 1]),
)
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**16), SIZES), max_size=60)
"""Two of three steps allocate; the others free a block that is live."""


def events_of(steps):
    live, events = [], []
    for block_id, (kind, choice, size) in enumerate(steps):
        if kind == 0 and live:
            events.append((live.pop(choice % len(live)), 0))
        else:
            events.append((block_id, size))
            live.append(block_id)
    return events


@KINDS
@settings(max_examples=300)
@given(
    steps=STEPS,
    clears=st.frozensets(st.integers(0, 60), max_size=4),
    capacity=st.one_of(st.none(), st.integers(0, 300 * MIB)),
)
def test_it_agrees_with_the_slow_model(expandable, steps, clears, capacity):
    fast = CachingAllocator(expandable_segments=expandable, capacity_bytes=capacity)
    slow = SlowModel(expandable, capacity)
    for place, (block_id, size) in enumerate(events_of(steps)):
        if place in clears:
            fast.empty_cache()
            slow.release()
        if not size:
            # Blocks that did not fit were never there.
            if block_id in slow.live:
                fast.free(block_id)
                slow.free(block_id)
        elif slow.allocate(block_id, size):
            fast.allocate(block_id, size)
        else:
            with pytest.raises(OutOfMemory):
                fast.allocate(block_id, size)
        assert fast.allocated_bytes == slow.total("used")
        assert fast.reserved_bytes == slow.reserved()
        assert [fast.peak_allocated_bytes, fast.peak_reserved_bytes] == slow.peaks
        assert fast.retried == slow.retried


def ranges(allocator):
    """Every range of the allocator's pools as (pool, address, size, state), in the order of addresses."""
    found = []
    for pool in allocator._pools.values():
        blocks = [(block, "free") for _, _, block in pool._free]
        blocks += [(block, "unmapped") for _, block in getattr(pool, "_unmapped", [])]
        blocks += [
            (held[0], "used") for held in allocator._live.values() if held is not None and held[1] is pool
        ]
        found.append(sorted(((b.address, b.size, state, b) for b, state in blocks), key=lambda each: each[0]))
    return found


def check(allocator):
    """What must hold of a state, whatever led to it."""
    for pool, found in zip(allocator._pools.values(), ranges(allocator), strict=True):
        mapped = sum(size for _, size, state, _ in found if state != "unmapped")
        assert mapped == pool.reserved_bytes
        assert pool._free == sorted(pool._free)
        for address, size, state, block in found:
            assert size > 0
            assert size % MIN_BLOCK == address % MIN_BLOCK == 0
            assert block.mapped == (state != "unmapped")
            assert block.allocated == (state == "used")
            if block.previous is None:
                # A segment begins and ends on a boundary of 2 MiB, and its blocks lie in it without a gap.
                end = block
                while end.following is not None:
                    assert end.following.previous is end
                    assert end.following.address == end.address + end.size
                    end = end.following
                assert address % (2 * MIB) == (end.address + end.size) % (2 * MIB) == 0
        for (one, size, state, block), (two, _, other, behind) in pairwise(found):
            assert one + size <= two
            if block.following is behind:
                assert state == "used" or state != other, "neighbours that could be one block"
    assert 0 <= allocator.allocated_bytes <= allocator.reserved_bytes
    assert allocator.allocated_bytes <= allocator.peak_allocated_bytes <= allocator.peak_reserved_bytes
    assert allocator.reserved_bytes <= allocator.peak_reserved_bytes
    used = sum(size for found in ranges(allocator) for _, size, state, _ in found if state == "used")
    assert used == allocator.allocated_bytes


@KINDS
@settings(max_examples=150)
@given(steps=STEPS, capacity=st.one_of(st.none(), st.integers(0, 300 * MIB)))
def test_blocks_tile_their_segments(expandable, steps, capacity):
    allocator = CachingAllocator(expandable_segments=expandable, capacity_bytes=capacity)
    live = set()
    for block_id, size in events_of(steps):
        if size:
            try:
                allocator.allocate(block_id, size)
                live.add(block_id)
            except OutOfMemory:
                assert capacity is not None
        elif block_id in live:
            allocator.free(block_id)
            live.remove(block_id)
        check(allocator)
        assert capacity is None or allocator.peak_reserved_bytes <= capacity
    for block_id in live:
        allocator.free(block_id)
    check(allocator)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    check(allocator)
    assert allocator.reserved_bytes == 0


@KINDS
@settings(max_examples=100)
@given(steps=STEPS, cut=st.integers(0, 60))
def test_peaks_only_grow(expandable, steps, cut):
    events = events_of(steps)
    whole = replay(events, expandable_segments=expandable)
    part = replay(events[:cut], expandable_segments=expandable)
    assert part.peak_allocated_bytes <= whole.peak_allocated_bytes
    assert part.peak_reserved_bytes <= whole.peak_reserved_bytes
    assert whole.retried == 0
    # As much as was reserved without a limit is always enough, and then nothing has to be given back.
    limited = replay(events, expandable_segments=expandable, capacity_bytes=whole.peak_reserved_bytes)
    assert limited == whole


@settings(max_examples=100)
@given(sizes=st.lists(SIZES, max_size=60))
def test_without_frees_a_single_segment_wastes_less_than_a_page(sizes):
    got = replay(enumerate(sizes), expandable_segments=True)
    assert got.peak_allocated_bytes == sum(-(-size // 512) * 512 for size in sizes)
    assert got.peak_reserved_bytes - got.peak_allocated_bytes < 22 * MIB


@KINDS
@pytest.mark.parametrize("capacity", [None, 12 * GIB])
def test_a_hundred_thousand_events(expandable, capacity):
    """Layers that keep activations and drop temporaries, forward and backward, with a batch that varies."""
    events = []
    for step in range(100):
        kept = []
        for layer in range(250):
            kept.append(len(events))
            events.append((len(events), (30 + (step * 7 + layer) % 11) * MIB + 512 * layer))
            events.extend([(len(events), 3000 * (layer + 1)), (len(events), 0)])
        events.extend((block_id, 0) for block_id in reversed(kept))
    assert len(events) == 100_000
    got = replay(events, expandable_segments=expandable, capacity_bytes=capacity)
    assert got.fits
    assert got.final_allocated_bytes == 0


def test_streams_cannot_use_each_others_memory():
    size = 64 * MIB
    one_after_another = [(1, size), (1, 0), (2, size), (2, 0)]
    alone, apart = replay(one_after_another), replay(one_after_another, streams={2: 1})
    assert (alone.peak_reserved_bytes, apart.peak_reserved_bytes) == (size, 2 * size)
    assert apart.peak_allocated_bytes == alone.peak_allocated_bytes == size
    # Short of memory, what one stream has cached goes back to the device, for the other to take.
    short = replay(one_after_another, streams={2: 1}, capacity_bytes=size)
    assert (short.fits, short.retried) == (True, 1)


def test_blocks_that_others_still_use_are_handed_out_again_after_the_next() -> None:
    unit = 100 * MIB
    events = [(n // 2, unit if n % 2 == 0 else 0) for n in range(12)]  # one after the other
    streams = dict.fromkeys(range(6), 1)
    alone, lagging = (replay(events, streams=streams, lagging=late) for late in ((), {1}))
    assert alone.peak_reserved_bytes == unit
    assert lagging.peak_reserved_bytes == 2 * unit
    assert lagging.peak_allocated_bytes == alone.peak_allocated_bytes == unit
    assert lagging.final_allocated_bytes == 0
    assert replay(events, lagging={1}).peak_reserved_bytes == unit, "the first stream does not lag"


def test_short_of_memory_it_is_waited_for_those_who_use_a_block() -> None:
    events = [(0, 100 * MIB), (0, 0), (1, 120 * MIB)]
    found = replay(events, streams={0: 1, 1: 1}, lagging={1}, capacity_bytes=130 * MIB)
    assert (found.fits, found.retried) == (True, 1)
