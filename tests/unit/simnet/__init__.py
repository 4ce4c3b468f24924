"""Tests of relay.simnet without sockets: blocks, trees, keys, worlds, fault plans, lies, and the oracle."""
