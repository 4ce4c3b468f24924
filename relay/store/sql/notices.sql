-- hold() -> bool      called by commands beside a service, at the start of each write: does anybody hold the lease, who may have rows in memory?
-- FOR KEY SHARE, as the check of an epoch: a take-over waits for the end of this transaction, and loads its rows after it.
SELECT owner IS NOT NULL FROM partition WHERE id = 0 FOR KEY SHARE;

-- add(kind, dids)      called in the transaction that changes the rows, up to 5,000 DIDs at a time
INSERT INTO notice (kind, dids) VALUES (%(kind)s, %(dids)s);

-- waiting(limit) -> id, kind, dids      called by the holder twice a second; the table is empty nearly always
-- Read until deleted, and not from a number on: of two transactions the later one may have the lower id.
SELECT id, kind, dids FROM notice ORDER BY id LIMIT %(limit)s;

-- delete(ids)      called by the holder when it has taken them; primary key
DELETE FROM notice WHERE id = ANY(%(ids)s);
