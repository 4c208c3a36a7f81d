"""An engine that keeps what clients answered on disk, so that a run that was killed asks only those left."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open

from dswag.core.atomic_files import SaveError, remove_leftovers, replacing, save_tensors, saving
from dswag.core.checksums import fingerprint
from dswag.federation.contract import ClientError, Engine, Fold, Payload, Result, Task
from dswag.federation.result_validation import validate_result

_FORMAT = "dswag-answer"


class Recorded:
    """An engine that saves another's answers to training tasks, one file each, and uses saved ones the next time.

    Saved and new answers come in task order, so that a fold ends up with the same bits as if all answers were new. A
    file is used only for the task and payload that it answers; those of several round trips lie side by side. An answer
    that does not fit its task is not saved.

    Args:
        engine: where the clients are.
        folder: for the files, of s x d weights each; it is made when the first answer comes.
        answered: called after each answer that was folded.

    Raises:
        SaveError: a file cannot be written, or was changed during a round trip.
    """

    def __init__(self, engine: Engine, folder: str | Path, *, answered: Callable[[], None] = lambda: None) -> None:
        self.engine = engine
        self.folder = Path(folder)
        self.answered = answered

    @property
    def num_clients(self) -> int:
        """W of the engine within."""
        return self.engine.num_clients

    @property
    def batch_norm_layers(self) -> Mapping[str, int]:
        """Those of the engine within."""
        return self.engine.batch_norm_layers

    def answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        """Every task's answer, saved or new, in task order; a new one is saved once whoever iterates goes on."""
        if not tasks or not all(task.trains for task in tasks):
            return self.engine.answers(payload, tasks)
        return self._answers(payload, tasks)

    def combine(self, fold: Fold[Any, Any], failure: Exception | None = None) -> None:
        """What the engine within does."""
        self.engine.combine(fold, failure)

    def _answers(self, payload: Payload, tasks: Sequence[Task]) -> Iterator[Result | ClientError]:
        basis = fingerprint(payload)
        files = {task.index: _Answer.to(task, basis, self.folder) for task in tasks}
        saved = {index for index, file in files.items() if file.load() is not None}
        left = [task for task in tasks if task.index not in saved]
        new = self.engine.answers(payload, left) if left else iter(())
        for task in tasks:
            file = files[task.index]
            if task.index not in saved:
                answer = next(new)
                yield answer
                if isinstance(answer, Result) and _fits(task, answer, payload):
                    file.save(answer)
                del answer
            elif (result := file.load()) is not None:
                yield result
                del result
            else:
                raise SaveError(f"{file.path} was changed while it was needed: leave it alone, and start again")
            self.answered()


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
        return cls(task, folder / f"{task.index:05d}-{payload[:8]}.safetensors", fingerprint({}, payload, repr(task)))

    def load(self) -> Result | None:
        """The answer; None where there is none, or none that can be read, or one to something else."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata["format"] != _FORMAT or metadata["key"] != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            if metadata["fingerprint"] != fingerprint(tensors, metadata["values"]):
                return None
            return self.task.result.from_wire(self.task, json.loads(metadata["values"]), tensors)
        except (FileNotFoundError, SafetensorError, KeyError, RecursionError, RuntimeError, TypeError, ValueError):
            return None

    def save(self, result: Result) -> None:
        """Writes the answer."""
        values, given = result.to_wire()
        text, tensors = json.dumps(values), {name: tensor.contiguous() for name, tensor in given.items()}
        content = fingerprint(tensors, text)
        metadata = {"format": _FORMAT, "key": self.key, "values": text, "fingerprint": content}
        with saving(self.path, "make room for the clients' answers, and start again"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path)
            with replacing(self.path) as temporary:
                save_tensors(temporary, tensors, metadata)


def _fits(task: Task, result: Result, payload: Payload) -> bool:
    try:
        validate_result(task, result, payload)
    except ValueError:
        return False
    return True
