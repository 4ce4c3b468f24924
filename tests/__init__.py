"""Tests of the relay: unit, integration, interop, faults, fuzz, bench; support has what they share."""
