"""The gRPC contract in bytes: generated messages and stubs, and a hand-made encoder for the one hot message.

Job: turn what the relay knows into wire bytes of `ingester.v1` and, for the few operations that need looking at, back. May know:
`proto/ingester.proto` and the shared values of `relay.model`. Must not: open a channel, know a repo's state, or hold anything.
Called by: backfill and tail (encode, in processes that never load gRPC), deliver, admin, cli.
"""
