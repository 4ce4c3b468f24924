"""Tests of the wire messages."""
