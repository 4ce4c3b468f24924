"""The AT Protocol network on loopback, for `demo`, tests and benchmarks: PLC, PDSes, a relay, and all that goes wrong with them.

A stranger to the rest of the house: it writes blocks, trees, signatures and CARs with code and libraries of its own, and
imports nothing of `atproto`, `repos`, `store`, `backfill`, `tail` or `deliver`, so that a mistake made there cannot hide here.
It serves 127.0.0.1 only and is seeded: the same seed gives the same accounts, records and faults.

`world` and `corpus` are the truth, and `writers` change it while others look. `telling` turns what happens into events; `plc`,
`pds`, `upstream` and `firehose` tell all of it over `http`. `faults` says what goes wrong, `spoil` and `lies` know how.
`oracle` compares the truth with an ingester's database. `network.SimNetwork` runs it inside a process, `process.SimProcess` in one
of its own. Called by `cli.demo`, tests and benchmarks.
"""
