"""What an engine answers, without the checks and the counts of a round trip."""

from contextlib import closing

from dswag.federation.contract import ClientError


def fold_answers(engine, payload, tasks, fold):
    """The fold after all answers, in one process; the first failure is raised."""
    with closing(engine.answers(payload, tasks)) as answers:
        for answer in answers:
            if isinstance(answer, ClientError):
                raise answer
            fold.add(answer)
            del answer
    return fold


def results_of(engine, payload, tasks):
    """All results; the first failure is raised."""
    return fold_answers(engine, payload, tasks, _List()).results


class _List:
    def __init__(self):
        self.results = []

    def add(self, result):
        self.results.append(result)
