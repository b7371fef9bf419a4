from __future__ import annotations

import torch

from rankwise.optimizer.estimates.allocator import MIN_BLOCK_BYTES
from rankwise.runners.tensor_memory import TensorMemory, training_tensors

KIB = 1024


def floats(count_bytes: int) -> torch.Tensor:
    return torch.ones(count_bytes // 4)


def test_storages_count_from_birth_to_death() -> None:
    with TensorMemory() as memory:
        one = floats(4 * KIB)
        two = floats(8 * KIB)
        assert memory.live_bytes == 12 * KIB
        del one
        assert memory.live_bytes == 8 * KIB
        three = floats(2 * KIB)
        del two, three
    assert (memory.live_bytes, memory.peak_bytes) == (0, 12 * KIB)


def test_views_count_once_and_keep_their_storage_alive() -> None:
    with TensorMemory() as memory:
        base = floats(4 * KIB)
        view = base.view(2, -1)[0]
        also = base.detach().t()
        del base
        assert memory.live_bytes == 4 * KIB
        del view, also
    assert (memory.live_bytes, memory.peak_bytes) == (0, 4 * KIB)


def test_small_storages_are_rounded_up() -> None:
    with TensorMemory() as memory:
        scalar = torch.ones(1)
        odd = torch.ones(MIN_BLOCK_BYTES // 4 + 1)
        assert memory.live_bytes == 3 * MIN_BLOCK_BYTES
        del scalar, odd


def test_tensors_from_before_count_when_named_and_leave_when_freed() -> None:
    before = floats(4 * KIB)
    with TensorMemory() as memory:
        memory.follow([before, before.view(2, -1)])
        assert memory.live_bytes == 4 * KIB
        del before
        assert memory.live_bytes == 0


def test_in_place_operations_add_nothing() -> None:
    with TensorMemory() as memory:
        tensor = floats(4 * KIB)
        tensor.add_(1).mul_(2)
        assert memory.peak_bytes == 4 * KIB


def test_addresses_that_are_used_again_are_counted_again() -> None:
    with TensorMemory() as memory:
        for _ in range(100):
            tensor = floats(64 * KIB)
            del tensor
        assert (memory.live_bytes, memory.peak_bytes) == (0, 64 * KIB)


def test_a_toy_step_equals_the_hand_count() -> None:
    """y = Wx without bias, loss = Σy², SGD with momentum: all sizes can be counted by hand."""
    rows, features = 32, 128
    model = torch.nn.Linear(features, features, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    weight_bytes = 4 * features * features
    batch_bytes = 4 * rows * features
    scalar_bytes = MIN_BLOCK_BYTES

    def step(inputs: torch.Tensor) -> None:
        loss = model(inputs).pow(2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    inputs = torch.ones(rows, features)
    step(inputs)  # the momentum buffer is born
    memory = TensorMemory()
    memory.follow([*training_tensors(model, optimizer), inputs])
    standing_bytes = 2 * weight_bytes + batch_bytes  # weight, momentum, inputs
    assert memory.live_bytes == standing_bytes
    with memory:
        step(inputs)
    # At the peak, backward has y and dy, makes the gradient dW, and has not let go of the loss.
    forward_bytes = batch_bytes + scalar_bytes
    assert memory.live_bytes == standing_bytes
    assert memory.peak_bytes >= standing_bytes + forward_bytes + batch_bytes + weight_bytes - batch_bytes
    assert memory.peak_bytes <= standing_bytes + forward_bytes + 4 * batch_bytes + weight_bytes + scalar_bytes


def test_training_tensors_are_everything_that_outlives_a_step() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 64)).sum().backward()
    optimizer.step()
    kept = list(training_tensors(model, optimizer))
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    moments = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq", "step")
    ]
    expected = [*parameters, *gradients, *moments, *model.buffers()]
    assert {id(tensor) for tensor in kept} == {id(tensor) for tensor in expected}
