-- upsert_listed(rows json)      called by discovery for each page of listHosts; primary key
INSERT INTO host AS h (host, status, accounts, seq)
SELECT v.host, v.status, v.accounts, v.seq
FROM json_to_recordset(%(rows)s) AS v (host text, status text, accounts bigint, seq bigint)
ON CONFLICT (host) DO UPDATE
SET status = coalesce(excluded.status, h.status), accounts = coalesce(excluded.accounts, h.accounts),
    seq = coalesce(excluded.seq, h.seq), updated_at = now()
WHERE (excluded.status, excluded.accounts, excluded.seq) IS DISTINCT FROM (h.status, h.accounts, h.seq);

-- note_many(rows json)      called now and then with what fetching met: how each host answered last; primary key
INSERT INTO host AS h (host, last_success_at, last_failure_at, down_since, failures, error)
SELECT v.host, to_timestamp(v.last_success_at), to_timestamp(v.last_failure_at), to_timestamp(v.down_since), v.failures, v.error
FROM json_to_recordset(%(rows)s)
     AS v (host text, last_success_at float8, last_failure_at float8, down_since float8, failures int, error text)
ON CONFLICT (host) DO UPDATE
SET last_success_at = greatest(h.last_success_at, excluded.last_success_at),
    last_failure_at = greatest(h.last_failure_at, excluded.last_failure_at),
    down_since = excluded.down_since, failures = excluded.failures, error = excluded.error, updated_at = now();

-- load_many(hosts) -> all columns      called by the scheduler for hosts that it meets; primary key
SELECT host, status, accounts, seq, extract(epoch FROM last_success_at)::float8, extract(epoch FROM last_failure_at)::float8,
       extract(epoch FROM down_since)::float8, failures, error
FROM host WHERE host = ANY(%(hosts)s);

-- list_page(after, limit) -> all columns      called by status and reconcile; primary key
SELECT host, status, accounts, seq, extract(epoch FROM last_success_at)::float8, extract(epoch FROM last_failure_at)::float8,
       extract(epoch FROM down_since)::float8, failures, error
FROM host WHERE host > %(after)s ORDER BY host LIMIT %(limit)s;
