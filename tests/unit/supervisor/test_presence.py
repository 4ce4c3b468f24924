"""What a process says of itself where nobody else notices anything."""

from __future__ import annotations

from pathlib import Path

from relay.config.schema import Settings
from relay.observe.metrics import Metrics
from relay.store.pool import Database
from relay.supervisor.presence import SILENT_S, Presence


def test_a_database_that_hangs_is_told_of_once_it_is_more_than_slow_until_it_answers(tmp_path: Path) -> None:
    settings = Settings()
    presence = Presence(
        settings, Metrics(version="0", runtime=False), Database(settings.database, tmp_path), command="run"
    )
    assert presence.silence(1e9) is None  # nobody has asked yet
    presence.answered(100.0)
    assert presence.silence(100.0 + SILENT_S) is None
    assert presence.silence(100.0 + SILENT_S + 6) == "it has not answered for 36 s"
    presence.answered(140.0)
    assert presence.silence(141.0) is None
