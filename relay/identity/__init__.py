"""Who a DID is: its signing key, its PDS, its handle, as its document says.

May know: how old an answer is, what a directory's silence means, how often one DID may be asked about. Must not: speak HTTP
itself (`net.xrpc.DidDirectory` does), write the identity table itself (hooks do), decide what becomes of the repo. Runs in the
fetch processes, any number of threads. Called by `backfill`, later by `tail`.
"""
