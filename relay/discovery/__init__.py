"""Which repos there are: the operator's lists, enumerations of hosts and of the network, and reconciles of what is stored with them.

All go on where they stopped. May know: XRPC listings, the limits of hosts, how the database takes a page. Must not: resolve identities,
fetch repos. An enumeration judges no listed repo's state (`store.repos.upsert_discovered` has the rules); a reconcile marks what
differs (`comparison.py` has its rules), and the mark is worked off elsewhere. A PDS's claim to host a DID is worth nothing here: an
enumeration takes only the DID, a reconcile believes of a repo only the host of its identity. Called by `supervisor`.
"""
