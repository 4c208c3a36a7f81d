"""How far a run is, and what it takes to go on: history, checkpoints, what explorers answered."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dswag.runs.checkpoint import Checkpoint, before
from dswag.runs.files import ANSWERS, CHECKPOINT, HISTORY, Files, RunFolderError, from_json
from dswag.runs.schema import ExploreRecord, RoundRecord


class Progress(Files):
    """The files of a run that is under way."""

    def save_history(self, rounds: Sequence[RoundRecord], exploration: ExploreRecord | None = None) -> None:
        """Writes a line for each round, and one for phase 2 once it is done."""
        records: list[RoundRecord | ExploreRecord] = [*rounds, *([] if exploration is None else [exploration])]
        self._write_text(HISTORY, "".join(json.dumps(asdict(record), allow_nan=False) + "\n" for record in records))

    def history(self) -> tuple[RoundRecord, ...]:
        """The complete rounds; none if there is none yet.

        Raises:
            RunFolderError: a line that is cut off or no round; it is named.
        """
        return tuple(record for record in self._records() if isinstance(record, RoundRecord))

    def exploration(self) -> ExploreRecord | None:
        """The record of phase 2; None if it is not done. Raises what `history` does."""
        return next((record for record in self._records() if isinstance(record, ExploreRecord)), None)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes the state of phase 1, and keeps the previous checkpoint."""
        self._write(CHECKPOINT, checkpoint.save)

    def checkpoint(self) -> Checkpoint:
        """The state of phase 1 after its last round.

        Raises:
            RunFolderError: no round was completed.
            CheckpointError: a file that is damaged, foreign or of a newer format.
        """
        checkpoint = Checkpoint.load(self._existing(CHECKPOINT, "no round of phase 1 was completed: train again"))
        self._check_unchanged(CHECKPOINT)
        return checkpoint

    def latest_checkpoint(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The checkpoint to continue from, if any, and faults of newer ones; raises what `Checkpoint.latest` does."""
        return Checkpoint.latest(self.path / CHECKPOINT)

    def rounds_before(self, checkpoint: Checkpoint | None) -> tuple[RoundRecord, ...]:
        """The history up to the checkpoint; it is saved before the checkpoint is, so it may tell of later rounds.

        Raises:
            RunFolderError: a history that is damaged, or tells of fewer rounds.
        """
        rounds = 0 if checkpoint is None else checkpoint.server.round
        history = self.history() if rounds else ()
        if len(history) < rounds:
            raise RunFolderError(
                f"{self.path / HISTORY} tells of {len(history)} rounds, the checkpoint is of round {rounds}: "
                "put back the history that belongs to it, or train from the start again"
            )
        return history[:rounds]

    @property
    def answers(self) -> Path:
        """The folder for explorers' answers, which exists until the run has been scored."""
        return self.path / ANSWERS

    def remove_answers(self) -> None:
        """Removes what is needed only for resuming: the explorers' answers and the previous checkpoint."""
        self._remove(ANSWERS, before(Path(CHECKPOINT)).name)

    def _records(self) -> list[RoundRecord | ExploreRecord]:
        path = self.path / HISTORY
        lines = path.read_bytes().splitlines() if path.exists() else []
        found: list[RoundRecord | ExploreRecord] = []
        for number, line in enumerate(lines, 1):
            kind: type[RoundRecord] | type[ExploreRecord] = ExploreRecord if b'"phase": 2' in line else RoundRecord
            found.append(from_json(line, kind, f"{path}, line {number}"))
        self._check_unchanged(HISTORY)
        return found
