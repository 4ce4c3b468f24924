"""The AT Protocol: bytes in, values out.

Job: read and write what the protocol defines (identifiers, CIDs, DAG-CBOR, JSON, CARs, trees, commits, keys, DID documents,
stream frames) and say whether it is valid. May know: nothing but the specification; it imports nothing else of ours. Must
not: open a socket or file, read a clock, start a thread, log, or guess. Every reader takes its limits explicitly, allocates
only in proportion to its input, and raises an `AtprotoError` that names the place. Called by: every room above.
"""
