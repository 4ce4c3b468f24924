"""Fixtures of the tests of `run` and `tail`: the stage of the backfill tests."""

from __future__ import annotations

from tests.integration.backfill.conftest import make_scene, scene

__all__ = ["make_scene", "scene"]
