"""The network door: every byte that comes from other people's servers enters here, and nowhere else.

May know: sockets, TLS, HTTP, XRPC's shapes, the limits of `config`. Must not: decide what a repo's failure means (it says
who is to blame, `repos` and `backfill` decide), verify records, touch the database. Every request is guarded (public addresses
only, `guard.py`), bounded (size, time, speed, redirects, `http.py`), polite (`bucket.py`, `hosts.py`, `gate.py`) and named
(User-Agent). Pure inside: addresses, guard rules, facts, bucket, hosts, speed. Called by `identity`, `discovery`, `backfill`, `tail`.
"""
