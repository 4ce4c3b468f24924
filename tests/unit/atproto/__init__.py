"""Tests of relay/atproto."""
