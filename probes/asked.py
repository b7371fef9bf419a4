"""What a user named of the task and its columns. Knows nothing of the data."""

from __future__ import annotations

from dataclasses import dataclass

from .profiles import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user named; None leaves the choice to the data."""

    task: str | None = None
    text_column: str | None = None
    context_column: str | None = None
    target_column: str | None = None
    label_column: str | None = None
    time_column: str | None = None
    channels: tuple[str, ...] = ()
    group_column: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Option → column, for those that were named."""
        named = {
            "--text-column": self.text_column,
            "--context-column": self.context_column,
            "--target-column": self.target_column,
            "--label-column": self.label_column,
            "--time-column": self.time_column,
            "--channel": next(iter(self.channels), None),
            "--group-column": self.group_column,
        }
        return {option: column for option, column in named.items() if column is not None}

    @property
    def names_content(self) -> bool:
        """A column that is learnt from was named: not only one that tells which rows to hold out."""
        return bool(self.columns.keys() - {"--time-column", "--group-column"})

    @property
    def wants_pair(self) -> bool:
        """A text is to be written from another."""
        return self.target_column is not None or self.task in (TaskKind.PROMPT_COMPLETION, TaskKind.SEQ2SEQ)

    @property
    def wants_series(self) -> bool:
        """Values are to be predicted from those before them."""
        return self.task == TaskKind.FORECASTING or bool(self.channels)

    @property
    def wants_label(self) -> bool:
        """A class or a number is to be predicted."""
        return self.label_column is not None or self.task in (
            TaskKind.TEXT_CLASSIFICATION,
            TaskKind.REGRESSION,
        )
