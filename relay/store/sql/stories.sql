-- history(did) -> notes, newest first      called by `repos show`; primary key
SELECT coalesce(history, '{}') FROM repo WHERE did = %(did)s;

-- incidents(since, limit) -> id, kind, text, at, closed_at      called by `repos show`: those since a repo is known, newest first; primary key
SELECT id, kind, text, extract(epoch FROM at)::float8, extract(epoch FROM closed_at)::float8 FROM incident
WHERE at >= to_timestamp(%(since)s)
ORDER BY id DESC LIMIT %(limit)s;

-- count_letters(did) -> count      called by `repos show`; index dead_letter_did
SELECT count(*) FROM dead_letter WHERE did = %(did)s;
