"""Tail: the firehose becomes proven operations, in order.

Job: follow the stream without losing a frame, decide what a frame, an error or a hole in it means, have commits proved by child
processes that are sharded by DID, and know the cursor up to which everything is done. May know: frames and their seqs, the arenas
that bulk bytes travel in. Must not: write repo state (the keeper does), judge the chain of a repo's commits (who has the stored
state does), talk to ingesters, or load gRPC in a child. Called by: supervisor; its children run `verifier`.
"""
