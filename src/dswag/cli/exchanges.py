"""What a report says of the exchanges with clients: bytes by phase, and whose answers did not come."""

from collections.abc import Sequence

from dswag.runs.schema import ExploreRecord, RoundRecord

_OCCASIONS = 8


def communication(rounds: Sequence[RoundRecord], exploration: ExploreRecord | None) -> dict[str, str]:
    """Bytes down and up in each phase, in all and of each client that took part."""
    phases: dict[str, Sequence[RoundRecord | ExploreRecord]] = {"phase 1": rounds}
    if exploration is not None:
        phases["phase 2"] = [exploration]
    found = {}
    for phase, records in phases.items():
        asked = sum(len(record.clients) for record in records)
        answered = asked - sum(len(record.missing) for record in records)
        down, up = (sum(getattr(record, name) for record in records) for name in ("bytes_down", "bytes_up"))
        if asked:
            found[f"{phase}, down"] = _per_client(down, asked)
        if answered:
            found[f"{phase}, up"] = _per_client(up, answered)
    return found


def left_out(rounds: Sequence[RoundRecord], exploration: ExploreRecord | None) -> dict[str, str]:
    """For each client without an answer when and why."""
    found: dict[tuple[int, str], list[str]] = {}
    records: list[tuple[str, RoundRecord | ExploreRecord]] = [(f"round {record.round}", record) for record in rounds]
    if exploration is not None:
        records.append(("phase 2", exploration))
    for occasion, record in records:
        for missing in record.missing:
            found.setdefault((missing.client, missing.cause), []).append(occasion)
    lines: dict[str, list[str]] = {}
    for (client, cause), occasions in sorted(found.items()):
        more = f" and {len(occasions) - _OCCASIONS} more" if len(occasions) > _OCCASIONS else ""
        lines.setdefault(f"client {client}", []).append(f"{', '.join(occasions[:_OCCASIONS])}{more}: {cause}")
    return {client: "; ".join(causes) for client, causes in lines.items()}


def in_bytes(number: float) -> str:
    """In units of a thousand, with three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def _per_client(number: int, clients: int) -> str:
    return f"{in_bytes(number)}, {in_bytes(number / clients)} per client each time"
