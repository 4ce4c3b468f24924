"""Tests of delivery without threads, sockets and clocks."""
