"""Which repos there are: the operator's lists, and enumerations of hosts and of the network that go on where they stopped.

May know: XRPC listings, the limits of hosts, how the database takes a page. Must not: resolve identities, fetch repos, judge a
listed repo's state (`store.repos.upsert_discovered` has the rules). A PDS's claim to host a DID is worth nothing here: only
the DID is taken. Called by `supervisor`.
"""
