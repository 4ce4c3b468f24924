"""Brings encoded operations to the right ingester: ordered per DID, acknowledged, and never lost on the way.

May know: segments (encoded operations of one DID), addresses, gRPC. Must not: decide what happens to a repo, read or write
the database, look into an operation beyond finding where it begins, or drop anything that was accepted. Called by the
supervisor, which hands segments to `delivery.Delivery` and hears of acknowledgements and refusals through `DeliveryEvents`.

The hard part is pure and in this order: `lanes` (what waits), `window` (how much may be under way), `gobackn` (what is under
way), `refusals` (RETRY and REJECT), all four joined in `outbox`; `health` judges one ingester, `absence` when it loses its DIDs
and has them back, `routing` chooses, `router` knows who has a DID meanwhile. `sender` is the thread, `delivery` the front door.
"""
