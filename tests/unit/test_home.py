from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.errors import InputError
from rankwise.home import Home


def test_a_home_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made") as caught:
        Home(tmp_path / "file").create()
    assert "RANKWISE_HOME" in caught.value.next_step
