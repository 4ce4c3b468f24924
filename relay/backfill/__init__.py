"""Backfill: a claimed repo becomes an acknowledged snapshot.

Job: choose which repo is next, have its CAR downloaded, verified and encoded by child processes, offer the operations to
delivery, and say how it ended. May know: one repo's work while it is here, the arenas that bulk bytes travel in, hosts' limits.
Must not: write repo state (the keeper does), talk to ingesters, or load gRPC in a child. Called by: supervisor; its children run
`worker` and `fetcher`.
"""
