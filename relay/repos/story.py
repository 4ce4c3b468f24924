"""A repo's whole story as others see it: an object for programs (`repos show --json`, the status page), lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from relay.model import Lane
from relay.observe import words
from relay.observe.status import rfc3339
from relay.repos.shown import show_entry
from relay.store.dead_letters import DeadLetter
from relay.store.repos import RepoRow
from relay.store.stories import Note, Story


def story_entry(story: Story) -> dict[str, object]:
    """Return everything as JSON takes it, times in RFC 3339: what `show_entry` has, and then what other tables know."""
    identity, failure = story.identity, story.lookup_failure
    return {
        **show_entry(story.row),
        "identity": {
            "signing_key": identity.signing_key if identity else None,
            "pds": identity.pds if identity else None,
            "handle": identity.handle if identity else None,
            "resolved_at": rfc3339(identity.resolved_at) if identity else None,
            "failed_at": rfc3339(failure.failed_at) if failure else None,
            "error": failure.error if failure else None,
        },
        "acknowledged": _acknowledged(story.row),
        "sent": _sent(story.row),
        "history": [_note_entry(note) for note in story.history],
        "dead_letters": [_letter_entry(letter) for letter in story.letters],
        "dead_letter_count": story.letter_count,
        "incidents": [
            {
                "at": rfc3339(each.at),
                "kind": each.kind,
                "text": each.text,
                "closed_at": None if each.closed_at is None else rfc3339(each.closed_at),
            }
            for each in story.incidents
        ],
    }


def story_lines(story: Story) -> Iterator[str]:
    """Yield the lines of `repos show`: what it is now, and below that how it came to be so."""
    row, entry = story.row, story_entry(story)
    yield f"{row.did}{'' if row.tracked else '  (removed: not tracked any more)'}"
    for name, value in entry.items():
        if name not in ("did", "tracked", "history", "dead_letters", "dead_letter_count", "incidents"):
            yield f"  {name:<18} {_text(value)}"
    yield "  history" if story.history else f"  {'history':<18} nothing out of the ordinary"
    yield from (f"    {_note_line(note)}" for note in story.history)
    if story.letter_count:
        shown = (
            "" if story.letter_count == len(story.letters) else f"; the newest {len(story.letters)}; `deadletter list`"
        )
        yield f"  dead letters       {words.count(story.letter_count)}{shown}"
        yield from (f"    {_letter_line(letter)}" for letter in story.letters)
    if story.incidents:
        yield "  incidents since it is known"
        for each in story.incidents:
            state = "open" if each.closed_at is None else f"closed {rfc3339(each.closed_at)}"
            yield f"    {rfc3339(each.at)}  {each.kind} ({state})  {each.text}"


def _acknowledged(row: RepoRow) -> dict[str, object] | None:
    """Return the newest rev that an ingester has, and by which lane. Of a live one the time is that of the row's last change."""
    if row.rev is None or not row.touched:
        return None
    is_live = row.rev_begun is not None and row.rev > row.rev_begun
    at = row.updated_at if is_live else row.synced_at
    return {
        "lane": (Lane.LIVE if is_live else Lane.BACKFILL).value,
        "rev": row.rev,
        "at": rfc3339(at) if at else None,
        "ingester": row.shard,
    }


def _sent(row: RepoRow) -> dict[str, object] | None:
    """Return the snapshot that was begun and of which REPO_END is not acknowledged; live operations in flight are not stored."""
    if row.rev_begun is None or row.rev_begun <= (row.rev or ""):
        return None
    return {"lane": Lane.BACKFILL.value, "rev": row.rev_begun, "ingester": row.shard}


def _note_entry(note: Note) -> dict[str, object]:
    entry: dict[str, object] = {"at": rfc3339(note.at), "state": note.state, "reason": note.reason}
    if note.attempts:
        entry["attempts"] = note.attempts
    if note.error is not None:
        entry["error"] = note.error
    if note.host is not None:
        entry["host"], entry["from"] = note.host, note.old_host
    if note.since is not None:
        entry["times"], entry["since"] = note.times, rfc3339(note.since)
    return entry


def _note_line(note: Note) -> str:
    parts = [rfc3339(note.at), f"{note.state:<11}", note.reason or "again in order"]
    if note.since is not None:
        parts.append(f"({note.times} times since {rfc3339(note.since)})")
    if note.attempts:
        parts.append(f"attempt {note.attempts}")
    if note.host is not None:
        parts.append(f"from {note.old_host} to {note.host}")
    if note.error is not None:
        parts.append(note.error)
    return "  ".join(parts)


def _letter_entry(letter: DeadLetter) -> dict[str, object]:
    return {
        "id": letter.id,
        "at": rfc3339(letter.at),
        "type": letter.type,
        "collection": letter.collection,
        "rkey": letter.rkey,
        "rev": letter.rev,
        "reason": letter.reason,
        "message": letter.message,
        "ingester": letter.ingester,
        "attempts": letter.attempts,
    }


def _letter_line(letter: DeadLetter) -> str:
    what = " ".join(each for each in (letter.type, letter.collection, letter.rkey) if each)
    return f"{rfc3339(letter.at)}  {letter.id}  {what}  {letter.reason}  {letter.message or ''}".rstrip()


def _text(value: object) -> str:
    if value is None or value == "":
        return words.UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(each) for each in value) or "all collections"
    if isinstance(value, dict):
        known = {name: each for name, each in value.items() if each is not None and each != ""}
        return ", ".join(f"{name} {_text(each)}" for name, each in known.items()) or words.UNKNOWN
    return str(value)
