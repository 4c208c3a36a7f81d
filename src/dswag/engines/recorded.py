"""An engine that keeps what clients answered on disk, so that a run that was killed asks only those left."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open

from dswag.core.atomic_files import SaveError, remove_leftovers, replacing, save_tensors, saving
from dswag.core.checksums import fingerprint
from dswag.federation.contract import ClientError, Engine, FoldT, Payload, Result, Task, TrainResult, TrainTask
from dswag.federation.fold_wrapper import Around
from dswag.federation.result_validation import fault

_FORMAT = "dswag-answer"


class Recorded:
    """An engine that saves another's answers to training tasks, one file each, and uses saved ones the next time.

    Saved and new answers are folded together in task order, so that a fold ends up with the same bits as if all answers
    were new. A file is used only for the task and payload that it answers. An answer that does not fit its task is not
    saved.

    Args:
        engine: where the clients are.
        folder: for the files, of s x d weights each; it is made when the first answer comes.
        answered: called after each answer that was folded.

    Raises:
        SaveError: a file cannot be written, or was changed during an exchange.
    """

    def __init__(self, engine: Engine, folder: str | Path, *, answered: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.folder = Path(folder)
        self.answered = answered

    @property
    def num_clients(self) -> int:
        """W of the engine within."""
        return self.engine.num_clients

    def reduce(self, payload: Payload, tasks: Sequence[Task], fold: FoldT) -> FoldT:
        """The fold after every task's answer, saved or new, was taken in, in task order."""
        if not all(isinstance(task, TrainTask) for task in tasks):
            return self.engine.reduce(payload, tasks, fold)
        basis = fingerprint(payload)
        answers = {task.index: _Answer.to(task, basis, self.folder) for task in tasks}
        saved = [index for index, answer in answers.items() if answer.load() is not None]
        recording = _Recording(fold, payload, answers, saved, self.answered)
        left = [task for task in tasks if task.index not in saved]
        if left or not tasks:
            self.engine.reduce(payload, left, recording)
        recording.replay()
        return fold


@dataclass(frozen=True)
class _Answer:
    """The file for the answer to a task."""

    task: Task
    path: Path
    key: str
    """Of the task and its payload."""

    @classmethod
    def to(cls, task: Task, payload: str, folder: Path) -> Self:
        """The file for the answer to this task about the payload with this fingerprint."""
        return cls(task, folder / f"{task.index:05d}.safetensors", fingerprint({}, payload, repr(task)))

    def load(self) -> TrainResult | None:
        """The answer; None where there is none, or none that can be read, or one to something else."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata["format"] != _FORMAT or metadata["key"] != self.key:
                    return None
                thetas = file.get_tensor("thetas")
            if metadata["fingerprint"] != fingerprint({"thetas": thetas}, metadata["numbers"]):
                return None
            return TrainResult(thetas=thetas, **json.loads(metadata["numbers"]))
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def save(self, result: TrainResult) -> None:
        """Writes the answer."""
        thetas = result.thetas.contiguous()
        names = ("index", "client", "num_examples", "loss")
        numbers = json.dumps({name: getattr(result, name) for name in names})
        key, content = self.key, fingerprint({"thetas": thetas}, numbers)
        metadata = {"format": _FORMAT, "key": key, "numbers": numbers, "fingerprint": content}
        with saving(self.path, "make room for the clients' answers, and start again"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)
            with replacing(self.path) as temporary:
                save_tensors(temporary, {"thetas": thetas}, metadata)


class _Recording(Around[FoldT]):
    """A fold, in place, that saves answers after another took them in, and puts saved ones in their turn."""

    def __init__(
        self,
        fold: FoldT,
        payload: Payload,
        answers: Mapping[int, _Answer],
        saved: Sequence[int],
        answered: Callable[[], None],
    ) -> None:
        super().__init__(fold)
        self.payload = payload
        self.answers = answers
        self.turn = {index: place for place, index in enumerate(answers)}
        self.saved = list(saved)
        self.answered = answered

    def add(self, result: Result) -> None:
        """Takes in what comes before the answer, then the answer, and saves it."""
        self.replay(until=result.index)
        super().add(result)
        answer = self.answers.get(result.index)
        if answer and isinstance(result, TrainResult) and not fault(answer.task, result, self.payload):
            answer.save(result)
        self.answered()

    def miss(self, error: ClientError) -> None:
        """Takes in what comes before the answer that did not come, and hands on why."""
        self.replay(until=error.task.index)
        super().miss(error)

    def empty(self) -> Self:
        """Saves answers too, and has none to put in their turn."""
        return type(self)(self.fold.empty(), self.payload, self.answers, (), self.answered)

    def replay(self, until: int | None = None) -> None:
        """Takes in the saved answers whose turn is before that task's; all that are left if None."""
        end = len(self.turn) if until is None else self.turn.get(until, 0)
        while self.saved and self.turn[self.saved[0]] < end:
            answer = self.answers[self.saved.pop(0)]
            result = answer.load()
            if result is None:
                raise SaveError(f"{answer.path} was changed while it was needed: leave it alone, and start again")
            self.fold.add(replace(result, thetas=result.thetas.to(self.payload["theta"].device)))
            self.answered()
