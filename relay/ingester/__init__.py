"""The reference ingester: stores what a relay delivers, by the rules that every ingester must follow.

A stranger to the rest of the house: it knows the gRPC contract (`relay.pb`) and nothing of repos, trees or the relay's state,
so that what it finds in its tables says something about the relay. Started by `relay.cli.ingester`, by hand or by the relay.

    server.py       the gRPC service: streams, batches, health
    streams.py      one stream: what was acknowledged, what is still to be said (no gRPC in it)
    writer.py       the one thread that stores: bounded intake, group commit
    operations.py   wire bytes -> checked changes, and the refusals (pure)
    rules.py        what a run of changes does to the tables (pure)
    order.py        does the relay keep the order it promised? (pure, for tests of a relay)
    faults.py       an ingester that misbehaves on purpose (for tests of a relay)
    sinks/          where it goes: postgresql, sqlite, jsonl, null
"""
