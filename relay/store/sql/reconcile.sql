-- try_lock() -> bool      called by reconcile.try_lock: one pass at a time, whichever process runs it; ends with the session
SELECT pg_try_advisory_lock(7236283512);

-- hold_epoch() -> epoch      called by a reconcile beside a holder, at the start of each write: a take-over waits for its end
SELECT epoch FROM partition WHERE id = 0 FOR KEY SHARE;

-- find_open() -> all columns      called at the start of a pass, and to see whether there is one; index reconcile_open
SELECT id, scope, extract(epoch FROM began_at)::float8, extract(epoch FROM finished_at)::float8,
       hosts_total, hosts_failed, compared, differed, queued, found, note
FROM reconcile WHERE finished_at IS NULL;

-- find_last() -> all columns      called by status and by the reconciler; index reconcile_finished
SELECT id, scope, extract(epoch FROM began_at)::float8, extract(epoch FROM finished_at)::float8,
       hosts_total, hosts_failed, compared, differed, queued, found, note
FROM reconcile WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1;

-- open_new(scope) -> all columns      called at the start of a pass, when there is none to go on with
INSERT INTO reconcile (scope) VALUES (%(scope)s)
RETURNING id, scope, extract(epoch FROM began_at)::float8, extract(epoch FROM finished_at)::float8,
          hosts_total, hosts_failed, compared, differed, queued, found, note;

-- set_baseline()      called once, where no pass has ever run: the first interval begins now
INSERT INTO reconcile (scope, finished_at, note) SELECT '', clock_timestamp(), 'baseline'
WHERE NOT EXISTS (SELECT FROM reconcile);

-- add_counts(id, compared, differed, queued, found)      called in the transaction of each page, and of each second look
UPDATE reconcile SET compared = compared + %(compared)s, differed = differed + %(differed)s, queued = queued + %(queued)s,
                     found = found + %(found)s
WHERE id = %(id)s;

-- finish(id, hosts_total, hosts_failed, note) -> seconds      called at the end of a pass
UPDATE reconcile SET finished_at = clock_timestamp(), hosts_total = %(hosts_total)s, hosts_failed = %(hosts_failed)s, note = %(note)s
WHERE id = %(id)s AND finished_at IS NULL;

-- tracked_hosts(after, limit, enough) -> host, tracked (up to `enough`)      called once a pass, 1,000 hosts at a time
-- Index repo_host, one probe a host and `enough` entries behind it: 3,000 hosts of 1 M repos in 0.1 s.
WITH RECURSIVE step (host) AS (
    (SELECT r.host FROM repo r WHERE r.host > %(after)s ORDER BY r.host LIMIT 1)
    UNION ALL
    SELECT n.host FROM step, LATERAL (
        SELECT r.host FROM repo r WHERE r.host > step.host ORDER BY r.host LIMIT 1
    ) n
), chosen AS (
    SELECT host FROM step LIMIT %(limit)s
)
SELECT chosen.host, (SELECT count(*) FROM (SELECT FROM repo r WHERE r.host = chosen.host LIMIT %(enough)s) counted)
FROM chosen ORDER BY chosen.host;

-- load(dids) -> did, host, state, reason, rev, rev_heard, told and to tell, check_due, tracked
-- Called for each page of a listing; primary key. No lock: what is found here is looked at again. With `save` and `add_seen` 20 pages/s
-- among 1 M repos (8 ms of our time each), 8.6 bytes a repo in reconcile_seen.
SELECT did, host, state, reason, rev, rev_heard, told_active, told_status, told_time_us, tell_active, tell_status, tell_time_us,
       check_due, tracked
FROM repo WHERE did = ANY(%(dids)s);

-- lock(dids) -> as load      called for each second look; primary key
-- SKIP LOCKED: whoever writes a repo just now knows more than the listing, and waiting for it while it waits for us would be a deadlock.
SELECT did, host, state, reason, rev, rev_heard, told_active, told_status, told_time_us, tell_active, tell_status, tell_time_us,
       check_due, tracked
FROM repo WHERE did = ANY(%(dids)s) ORDER BY did FOR UPDATE SKIP LOCKED;

-- existing(dids) -> did      called after lock, of those that it did not return; primary key
SELECT did FROM repo WHERE did = ANY(%(dids)s);

-- dids_of_host(host, after, limit) -> did      called where the repos of a host are asked for one by one; index repo_host
SELECT did FROM repo
WHERE host = %(host)s AND did > %(after)s AND tracked AND state IN ('synced', 'inactive')
ORDER BY did LIMIT %(limit)s;

-- put_candidates(rows json)      called in the transaction of a page; primary key. The newest word counts, and its time.
INSERT INTO reconcile_candidate AS c (did, host, rev, active, status, missing)
SELECT v.did, v.host, v.rev, v.active, v.status, v.missing
FROM json_to_recordset(%(rows)s) AS v (did text, host text, rev text, active boolean, status text, missing boolean)
ON CONFLICT (did) DO UPDATE
SET host = excluded.host, rev = excluded.rev, active = excluded.active, status = excluded.status, missing = excluded.missing,
    found_at = excluded.found_at;

-- candidates(until, limit) -> did, host, rev, active, status, missing      called about once a second; index reconcile_candidate_age
SELECT did, host, rev, active, status, missing FROM reconcile_candidate
WHERE found_at <= to_timestamp(%(until)s) ORDER BY found_at, did LIMIT %(limit)s;

-- has_candidates() -> bool      called at the end of a pass
SELECT EXISTS (SELECT FROM reconcile_candidate);

-- drop_candidates(dids)      called in the transaction that has decided them; primary key
DELETE FROM reconcile_candidate WHERE did = ANY(%(dids)s);

-- add_seen(host, page, dids)      called in the transaction of a page; primary key. A page of two passes at once: both count.
INSERT INTO reconcile_seen AS s (host, page, hashes)
SELECT %(host)s, %(page)s, array_agg(hashtextextended(did, 0)) FROM unnest(%(dids)s::text[]) AS listed (did)
ON CONFLICT (host, page) DO UPDATE SET hashes = s.hashes || excluded.hashes;

-- join_by_hash()      called before put_missing, for its transaction only
-- On tables that were never analyzed the planner would compare each of a million repos with each of a million hashes.
SELECT set_config('enable_nestloop', 'off', true);

-- put_missing(host)      called when a host's listing is complete: one statement, 0.6 s for a host of 1 M repos (a hash join)
-- Index repo_host. Of two DIDs with one hash the missing one would be missed: once in 10 million million hosts.
INSERT INTO reconcile_candidate (did, host, missing)
SELECT r.did, r.host, true FROM repo r
WHERE r.host = %(host)s AND r.tracked AND r.state IN ('synced', 'inactive')
  AND NOT EXISTS (
      SELECT FROM (SELECT unnest(hashes) AS hash FROM reconcile_seen WHERE host = %(host)s) seen
      WHERE seen.hash = hashtextextended(r.did, 0)
  )
ON CONFLICT (did) DO NOTHING;

-- forget_seen(host)      called when what is missing of a host is known (no host: at the end of a pass); primary key
DELETE FROM reconcile_seen WHERE host = %(host)s OR %(host)s IS NULL;

-- mark(rows json, now) -> verdict      called by each second look, of rows that it has locked; primary key
-- 11,000 rows/s with the rest of the second look. `newer`: fetched again; `status`, `commit`: its host is asked; `heard`: the rev is remembered.
UPDATE repo r
SET state = CASE WHEN v.verdict <> 'newer' THEN r.state WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END,
    reason = CASE WHEN v.verdict = 'newer' THEN 'newer_rev' ELSE r.reason END,
    attempts = CASE WHEN v.verdict = 'newer' THEN 0 ELSE r.attempts END,
    next_attempt_at = CASE WHEN v.verdict = 'newer' THEN to_timestamp(%(now)s) ELSE r.next_attempt_at END,
    rev_heard = CASE WHEN v.verdict IN ('newer', 'heard') THEN greatest(r.rev_heard, v.rev COLLATE "C") ELSE r.rev_heard END,
    check_due = CASE v.verdict WHEN 'status' THEN 'status' WHEN 'commit' THEN coalesce(r.check_due, 'commit') ELSE r.check_due END,
    history = CASE WHEN v.verdict <> 'newer' THEN r.history
              ELSE repo_noted(r.history, to_timestamp(%(now)s), CASE WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END, 'newer_rev') END,
    updated_at = to_timestamp(%(now)s)
FROM json_to_recordset(%(rows)s) AS v (did text, verdict text, rev text)
WHERE r.did = v.did COLLATE "C"
  AND (v.verdict IN ('newer', 'heard') OR (v.verdict = 'status' AND r.check_due IS DISTINCT FROM 'status')
       OR (v.verdict = 'commit' AND r.check_due IS NULL))
RETURNING v.verdict;

-- insert_found(rows json, now)      called by each second look, of DIDs without a row; primary key
INSERT INTO repo (did, partition, state, rev_heard, next_attempt_at, created_at, updated_at)
SELECT v.did, v.partition, 'discovered', v.rev, at, at, at
FROM json_to_recordset(%(rows)s) AS v (did text, partition smallint, rev text), to_timestamp(%(now)s) AS at
ON CONFLICT (did) DO NOTHING;

-- stream() -> now, time of the cursor, whether somebody follows a stream      called about once a second while there are candidates
SELECT extract(epoch FROM clock_timestamp())::float8, p.cursor_time_us,
       EXISTS (SELECT FROM instance WHERE command IN ('run', 'tail') AND heartbeat_at > clock_timestamp() - make_interval(secs => %(silent_s)s))
FROM partition p WHERE p.id = 0;
