from __future__ import annotations

from rankwise.optimizer.estimates.need import need_of, reserved_bytes
from rankwise.optimizer.estimates.tape import Event, Kind, Phase, Tape

MIB = 2**20


def tape(*weights: int, activation: int = 3 * MIB) -> Tape:
    """Weights that stay, and an activation that comes and goes."""
    built = [Event(number, size, Phase.BUILD, None) for number, size in enumerate(weights)]
    block = len(weights)
    step = [Event(block, activation, Phase.FORWARD, None), Event(block, 0, Phase.BACKWARD, None)]
    kinds = dict.fromkeys(range(block), Kind.BASE_WEIGHTS) | {block: Kind.ACTIVATIONS}
    return Tape([*built, *step], kinds, {})


def test_workspaces_are_allocated_with_the_first_step_and_kept() -> None:
    need = need_of(tape(2 * MIB), workspaces=(8 * MIB,))
    assert need.allocated_bytes == 13 * MIB
    assert need.by_phase[Phase.BUILD] == 2 * MIB
    assert need.by_phase[Phase.FORWARD] == 13 * MIB
    assert need.breakdown[Kind.WORKSPACE] == 8 * MIB


def test_weights_that_are_loaded_at_once_are_cut_from_one_piece() -> None:
    """One by one, each takes a segment of its own, cut to 2 MiB."""
    weights = tape(*[11 * MIB] * 3)
    at_once, one_by_one = need_of(weights, loads_at_once=True), need_of(weights)
    # What is left of a segment counts as allocated with its last piece, up to a MiB.
    assert (at_once.allocated_bytes, one_by_one.allocated_bytes) == (37 * MIB, 39 * MIB)
    of_activation = 20 * MIB
    assert at_once.reserved_bytes == 34 * MIB + of_activation
    assert one_by_one.reserved_bytes == 3 * 12 * MIB + of_activation
    assert reserved_bytes(weights, loads_at_once=True) == at_once.reserved_bytes
