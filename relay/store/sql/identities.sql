-- load_many(dids) -> did, signing_key, pds, handle, resolved_at      called by identity's cache, a batch of misses at a time; primary key
SELECT did, signing_key, pds, handle, extract(epoch FROM resolved_at)::float8 FROM identity
WHERE did = ANY(%(dids)s) AND resolved_at IS NOT NULL;

-- load_failures(dids) -> did, failed_at, error      called with load_many; primary key
SELECT did, extract(epoch FROM failed_at)::float8, error FROM identity
WHERE did = ANY(%(dids)s) AND failed_at IS NOT NULL;

-- upsert_many(rows json)      called in the checkpoint's transaction; primary key. An older resolution never replaces a newer one.
INSERT INTO identity AS i (did, signing_key, pds, handle, resolved_at)
SELECT v.did, v.signing_key, v.pds, v.handle, to_timestamp(v.resolved_at)
FROM json_to_recordset(%(rows)s) AS v (did text, signing_key text, pds text, handle text, resolved_at float8)
ON CONFLICT (did) DO UPDATE
SET signing_key = excluded.signing_key, pds = excluded.pds, handle = excluded.handle, resolved_at = excluded.resolved_at,
    failed_at = NULL, error = NULL
WHERE i.resolved_at IS NULL OR i.resolved_at <= excluded.resolved_at;

-- mark_failed(rows json)      called in the checkpoint's transaction; primary key
-- What is known stays: a stale document serves while PLC is away.
INSERT INTO identity AS i (did, failed_at, error)
SELECT v.did, to_timestamp(v.failed_at), v.error
FROM json_to_recordset(%(rows)s) AS v (did text, failed_at float8, error text)
ON CONFLICT (did) DO UPDATE SET failed_at = excluded.failed_at, error = excluded.error;
