-- insert_new(rows json, batch, now) -> did        called by repos.upsert_discovered, a page of a listing or a list of DIDs at a time
-- Primary key. `rows` are {did, partition, rev}, sorted by DID, without duplicates; 70,000 rows/s.
-- Rows that exist are left to update_known.
INSERT INTO repo (did, partition, state, rev_heard, batch, next_attempt_at, created_at, updated_at)
SELECT v.did, v.partition, 'discovered', v.rev, %(batch)s, at, at, at
FROM json_to_recordset(%(rows)s) AS v (did text, partition smallint, rev text), to_timestamp(%(now)s) AS at
ON CONFLICT (did) DO NOTHING
RETURNING did;

-- insert_streamed(rows json)       called by the checkpointer, before store_rows of the same rows: repos that the stream made known
-- Primary key. A listing may have found one at the same time: its row stays, and store_rows writes ours over it.
INSERT INTO repo (did, partition, state, next_attempt_at)
SELECT v.did, v.partition, 'discovered', to_timestamp(v.next_attempt_at)
FROM json_to_recordset(%(rows)s) AS v (did text, partition smallint, next_attempt_at float8)
ON CONFLICT (did) DO NOTHING;

-- update_known(rows json, batch, named, now) -> state, new state, tracked, wanted, newly to check, covers, count
--                                                called by repos.upsert_discovered, after insert_new
-- Primary key. Locks in DID order; writes only what differs, so that listing again what is at rest costs no write.
WITH known AS MATERIALIZED (
    SELECT r.did, r.state, r.reason, r.host, r.rev, r.rev_heard, r.check_due, r.covers, r.tracked, r.batch,
           r.attempts, r.next_attempt_at, v.rev AS listed_rev, v.active, coalesce(v.host <> r.host, false) AS is_foreign
    FROM json_to_recordset(%(rows)s) AS v (did text, rev text, active boolean, host text)
    JOIN repo r ON r.did = v.did COLLATE "C"
    ORDER BY r.did
    FOR UPDATE OF r
), judged AS (
    SELECT k.*, (k.tracked OR %(named)s) AS wanted,
        CASE
            WHEN NOT k.tracked THEN 'again'
            WHEN k.state = 'synced' AND k.listed_rev COLLATE "C" > coalesce(k.rev, '') AND NOT k.is_foreign THEN 'newer'
            WHEN k.state IN ('quarantined', 'failed') THEN 'again'
            WHEN k.state = 'inactive' AND k.active THEN 'again'
            ELSE 'keep'
        END AS verdict
    FROM known k
), decided AS (
    SELECT j.*,
        CASE WHEN verdict = 'keep' THEN state
             WHEN NOT tracked OR host IS NULL THEN 'discovered'
             ELSE 'pending' END AS new_state,
        CASE WHEN verdict <> 'keep' THEN check_due
             WHEN state = 'synced' AND is_foreign
                 THEN CASE WHEN listed_rev COLLATE "C" > coalesce(rev, '') THEN coalesce(check_due, 'commit') ELSE check_due END
             WHEN state = 'synced' AND NOT active THEN 'status'
             WHEN state = 'synced' AND listed_rev IS NULL THEN coalesce(check_due, 'commit')
             WHEN state = 'inactive' AND active IS NULL THEN 'status'
             ELSE check_due END AS new_check
    FROM judged j
), written AS (
    UPDATE repo r
    SET state = d.new_state,
        reason = CASE d.verdict WHEN 'keep' THEN r.reason WHEN 'newer' THEN 'newer_rev' END,
        rev_heard = greatest(r.rev_heard, CASE WHEN NOT d.is_foreign THEN d.listed_rev COLLATE "C" END),
        check_due = d.new_check,
        attempts = CASE d.verdict WHEN 'keep' THEN r.attempts ELSE 0 END,
        next_attempt_at = CASE d.verdict WHEN 'keep' THEN r.next_attempt_at ELSE to_timestamp(%(now)s) END,
        tracked = true,
        batch = coalesce(%(batch)s, r.batch),
        history = CASE d.verdict WHEN 'keep' THEN r.history
                  ELSE repo_noted(r.history, to_timestamp(%(now)s), d.new_state, CASE d.verdict WHEN 'newer' THEN 'newer_rev' ELSE 'listed' END) END,
        updated_at = to_timestamp(%(now)s)
    FROM decided d
    WHERE r.did = d.did AND d.wanted
      AND (d.verdict <> 'keep' OR d.new_check IS DISTINCT FROM r.check_due OR (d.listed_rev COLLATE "C" > coalesce(r.rev_heard, '') AND NOT d.is_foreign)
           OR coalesce(%(batch)s, r.batch) IS DISTINCT FROM r.batch)
)
SELECT state, new_state, tracked, wanted, new_check IS DISTINCT FROM check_due,
       CASE WHEN wanted AND state = 'synced' AND new_state = 'synced' THEN covers END, count(*)
FROM decided
GROUP BY 1, 2, 3, 4, 5, 6;

-- requeue_uncovered(dids, insufficient, batch, now)      called by repos.requeue_uncovered, after upsert_discovered of the same DIDs
-- Primary key.
UPDATE repo
SET state = 'pending', reason = 'filter', attempts = 0, next_attempt_at = to_timestamp(%(now)s), updated_at = to_timestamp(%(now)s),
    history = repo_noted(history, to_timestamp(%(now)s), 'pending', 'filter')
WHERE did = ANY(%(dids)s) AND state = 'synced' AND tracked
  AND (covers IS NULL OR covers = ANY(%(insufficient)s))
  AND (%(batch)s IS NULL OR batch = %(batch)s);

-- due_hosts(now, after, limit) -> host      called by backfill's scheduler, about once a second
-- Index repo_pending: one probe a host (a loose index scan: 3,000 hosts among 2 M pending repos in 50 ms), not one a row.
WITH RECURSIVE step (host, due) AS (
    (SELECT r.host, r.next_attempt_at FROM repo r
     WHERE r.state = 'pending' AND r.tracked AND r.host > %(after)s
     ORDER BY r.host, r.next_attempt_at LIMIT 1)
    UNION ALL
    SELECT n.host, n.next_attempt_at
    FROM step, LATERAL (
        SELECT r.host, r.next_attempt_at FROM repo r
        WHERE r.state = 'pending' AND r.tracked AND r.host > step.host
        ORDER BY r.host, r.next_attempt_at LIMIT 1
    ) n
)
SELECT host FROM step WHERE due <= to_timestamp(%(now)s) LIMIT %(limit)s;

-- claim(hosts, counts, now) -> repo columns      called by backfill's scheduler, for the hosts that have room
-- Index repo_pending, once for each host: without the host in it one host of 1.1 M accounts is all that is claimed for hours.
-- SKIP LOCKED: two claimers never wait for each other, and never share a row. 160 repos of 40 hosts among 2 M: 28 ms, 25,000 rows/s.
WITH due AS MATERIALIZED (
    SELECT d.did
    FROM unnest(%(hosts)s::text[], %(counts)s::int[]) AS want (host, count), LATERAL (
        SELECT r.did FROM repo r
        WHERE r.state = 'pending' AND r.tracked AND r.host = want.host COLLATE "C" AND r.next_attempt_at <= to_timestamp(%(now)s)
        ORDER BY r.next_attempt_at
        LIMIT want.count
        FOR UPDATE SKIP LOCKED
    ) d
)
UPDATE repo SET state = 'active', updated_at = to_timestamp(%(now)s)
FROM due WHERE repo.did = due.did
RETURNING {columns};

-- unresolved(now, exclude, limit) -> repo columns      called by backfill's scheduler: whose identity to look up next
-- Index repo_discovered. `exclude` has those in work, at most as many as there are look-ups at a time.
SELECT {columns} FROM repo
WHERE state = 'discovered' AND tracked AND next_attempt_at <= to_timestamp(%(now)s) AND did <> ALL(%(exclude)s)
ORDER BY next_attempt_at LIMIT %(limit)s;

-- fetch_again() -> bool, an expression over r and v      part of store_rows
-- On the row being updated itself: of another copy of it, PostgreSQL would look at the version before a concurrent change.
-- A row that is pending was made so by somebody else meanwhile (a filter that widened, a resync): our own are active until this write.
(v.state = 'synced' AND (r.again IS NOT NULL OR r.state = 'pending' OR r.rev_heard > greatest(v.rev_heard COLLATE "C", v.rev, '')))

-- noted() -> text[], an expression over r and v      part of store_rows
-- The history with what this write has out of the ordinary. On the straight way to synced, and for what a stream brings, no branch is taken.
CASE WHEN {fetch_again} THEN
         CASE r.state WHEN 'pending' THEN r.history ELSE repo_noted(r.history, now(), 'pending', coalesce(r.again, 'newer_rev')) END
     WHEN v.reason IS NOT NULL AND (v.reason <> coalesce(r.reason, '') OR v.state <> r.state OR v.attempts > r.attempts) THEN
         repo_noted(r.history, now(), v.state, v.reason, v.attempts, v.last_error, v.host, r.host)
     WHEN v.host <> r.host THEN repo_noted(r.history, now(), v.state, 'moved', NULL, NULL, v.host, r.host)
     WHEN r.state = 'inactive' AND v.state <> 'inactive' THEN repo_noted(r.history, now(), v.state, 'active_again')
     WHEN r.history IS NOT NULL AND v.state = 'synced' AND r.state <> 'synced' THEN repo_noted(r.history, now(), v.state, NULL)
     ELSE r.history END

-- store_rows(rows json) -> did, state, state asked for      called by the checkpointer, 1 to 4,000 rows at a time
-- Primary key, in DID order (a function's rows are probed one after the other); 30,000 rows/s at 1,000 rows a call.
-- What others may have written meanwhile stands: rev_heard and rev_begun never fall, a check_due that the writer has not seen stays, another fetch that was asked for happens.
WITH written AS (
    UPDATE repo r
    SET host = v.host,
        state = CASE WHEN {fetch_again} THEN 'pending' ELSE v.state END,
        reason = CASE WHEN {fetch_again} THEN coalesce(r.again, CASE WHEN r.state = 'pending' THEN r.reason ELSE 'newer_rev' END) ELSE v.reason END,
        rev = v.rev,
        data = decode(v.data, 'hex'),
        rev_begun = greatest(r.rev_begun, v.rev_begun COLLATE "C"),
        rev_heard = greatest(r.rev_heard, v.rev_heard COLLATE "C"),
        covers = v.covers,
        told_active = v.told_active, told_status = v.told_status, told_time_us = v.told_time_us,
        tell_active = v.tell_active, tell_status = v.tell_status, tell_time_us = v.tell_time_us,
        told_identity_us = v.told_identity_us,
        tell_handle = v.tell_handle, tell_pds = v.tell_pds, tell_identity_us = v.tell_identity_us,
        check_due = coalesce(v.check_due, CASE WHEN r.check_due IS DISTINCT FROM v.seen_check_due THEN r.check_due END),
        again = CASE WHEN v.state = 'active' THEN r.again END,
        attempts = CASE WHEN {fetch_again} THEN 0 ELSE v.attempts END,
        next_attempt_at = CASE WHEN {fetch_again} THEN now() ELSE to_timestamp(v.next_attempt_at) END,
        touched = v.touched OR r.touched,
        shard = v.shard,
        records = v.records,
        bytes = v.bytes,
        last_error = v.last_error,
        history = {noted},
        updated_at = now(),
        synced_at = to_timestamp(v.synced_at)
    FROM json_to_recordset(%(rows)s) AS v (
        did text, host text, state text, reason text, rev text, data text, rev_begun text, rev_heard text, covers text,
        told_active boolean, told_status text, told_time_us bigint, tell_active boolean, tell_status text, tell_time_us bigint,
        told_identity_us bigint, tell_handle text, tell_pds text, tell_identity_us bigint,
        check_due text, seen_check_due text, attempts int, next_attempt_at float8, touched boolean, shard text,
        records bigint, bytes bigint, last_error text, synced_at float8
    )
    WHERE r.did = v.did COLLATE "C"
    RETURNING r.did, r.state, v.state AS asked
)
SELECT did, state, asked FROM written;

-- requeue_due(now, limit) -> old state, new state      called by the scheduler, about once a second
-- Index repo_retry.
WITH due AS (
    SELECT did, state FROM repo
    WHERE state IN ('failed', 'desynced') AND tracked AND next_attempt_at <= to_timestamp(%(now)s)
    ORDER BY next_attempt_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE repo r
SET state = CASE WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END, updated_at = to_timestamp(%(now)s)
FROM due WHERE r.did = due.did
RETURNING due.state, r.state;

-- reset_active()      called once by the new holder of the lease: nobody works on these any more
-- Index repo_rare.
UPDATE repo SET state = CASE WHEN host IS NULL THEN 'discovered' ELSE 'pending' END, again = NULL, updated_at = now()
WHERE state = 'active';

-- list_active(after, limit) -> did      called by the scheduler twice a minute: is there one that nobody works on?
-- Index repo_rare.
SELECT did FROM repo WHERE state = 'active' AND did > %(after)s ORDER BY did LIMIT %(limit)s;

-- release_active(dids) -> old state, new state      called by the scheduler for those
-- Primary key.
UPDATE repo SET state = CASE WHEN host IS NULL THEN 'discovered' ELSE 'pending' END, next_attempt_at = now(), updated_at = now()
WHERE did = ANY(%(dids)s) AND state = 'active'
RETURNING 'active', state;

-- reset_homeless()    called with reset_active: a pending repo without a host would never be claimed
-- Index repo_pending.
UPDATE repo SET state = 'discovered', updated_at = now()
WHERE state = 'pending' AND tracked AND host IS NULL;

-- checks_due(after, limit) -> repo columns      called by whoever works the marks off
-- Index repo_check.
SELECT {columns} FROM repo
WHERE check_due IS NOT NULL AND tracked AND did > %(after)s
ORDER BY did LIMIT %(limit)s;

-- tells_due(after, limit) -> repo columns      called at start: statuses and identities that nobody has acknowledged
-- Index repo_tell.
SELECT {columns} FROM repo
WHERE (coalesce(tell_time_us, 0) > coalesce(told_time_us, 0) OR coalesce(tell_identity_us, 0) > coalesce(told_identity_us, 0))
  AND tracked AND did > %(after)s
ORDER BY did LIMIT %(limit)s;

-- count_by_state() -> state, count      called at start, and by status without a running instance; keep counters afterwards
-- A scan of everything: about 0.3 s a million rows.
SELECT state, count(*) FROM repo WHERE tracked GROUP BY state;

-- count_batch_by_state(batch) -> state, count      called at the start of a backfill, and for its summary
-- Index repo_batch.
SELECT state, count(*) FROM repo WHERE batch = %(batch)s AND tracked GROUP BY state;

-- totals(batch) -> records, bytes      called for the closing summary
-- Index repo_batch, or a scan of everything without a batch.
SELECT coalesce(sum(records), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM repo
WHERE tracked AND (%(batch)s IS NULL OR batch = %(batch)s);

-- unfinished_of_batch(batch) -> count      called by backfill, when its counters say that it is done
-- Index repo_batch; repo_check for those that are at rest but have yet to be compared.
SELECT (SELECT count(*) FROM repo
        WHERE batch = %(batch)s AND tracked AND state IN ('discovered', 'pending', 'active', 'desynced', 'failed'))
     + (SELECT count(*) FROM repo
        WHERE batch = %(batch)s AND tracked AND check_due IS NOT NULL AND state IN ('synced', 'inactive'));

-- reasons_of_batch(batch) -> state, reason, count      called for the closing summary
-- Index repo_batch.
SELECT state, reason, count(*) FROM repo
WHERE batch = %(batch)s AND tracked AND state NOT IN ('synced')
GROUP BY state, reason ORDER BY count(*) DESC, state, reason;

-- quarantined_of_batch(batch, after, limit) -> repo columns      called for the closing summary
-- Index repo_batch.
SELECT {columns} FROM repo
WHERE batch = %(batch)s AND tracked AND state = 'quarantined' AND did > %(after)s
ORDER BY did LIMIT %(limit)s;

-- list_repos(states, host, empty, after, limit) -> repo columns      called by `repos list`
-- repo_rare for the states that are few, repo_host for one host, else the primary key.
SELECT {columns} FROM repo
WHERE tracked AND did > %(after)s
  AND {filters}
ORDER BY did LIMIT %(limit)s;

-- load(dids) -> repo columns      called by the keeper and by `repos show`; removed repos too
-- Primary key.
SELECT {columns} FROM repo WHERE did = ANY(%(dids)s);

-- load_with_identities(dids) -> repo columns, signing_key, pds, handle, resolved_at      called for the stream, which waits for it
-- Primary keys of both; LIMIT, or a plan for a thousand DIDs would read the whole table of identities.
SELECT {columns}, i.signing_key, i.pds, i.handle, extract(epoch FROM i.resolved_at)::float8
FROM repo LEFT JOIN LATERAL (
    SELECT k.signing_key, k.pds, k.handle, k.resolved_at FROM identity k
    WHERE k.did = repo.did AND k.resolved_at IS NOT NULL
    LIMIT 1
) i ON true
WHERE repo.did = ANY(%(dids)s);

-- remove(dids)      called by `repos remove`: the row stays, because what was ever sent must be remembered
-- Primary key. Locks in DID order, as everybody does.
WITH chosen AS MATERIALIZED (
    SELECT did FROM repo WHERE did = ANY(%(dids)s) AND tracked ORDER BY did FOR UPDATE
)
UPDATE repo SET tracked = false, batch = NULL, check_due = NULL, history = repo_noted(history, now(), state, 'removed'), updated_at = now()
FROM chosen WHERE repo.did = chosen.did;

-- selected(after, host, changed_since, limit) -> did, is it one of them      called by `repos resync`, page by page
-- Primary key, with a host repo_host. Rows that are not chosen are counted too: a page takes as long as any other.
SELECT did, %(changed_since)s::float8 IS NULL OR updated_at >= to_timestamp(%(changed_since)s)
FROM repo WHERE tracked AND did > %(after)s AND {selection}
ORDER BY did LIMIT %(limit)s;

-- resync(dids, host, changed_since, all, now) -> old state, new state      called by `repos resync`; delivers again
-- Primary key, repo_host, or a scan. The status is told again, of inactive repos too; an active repo is fetched once more after its fetch.
WITH chosen AS MATERIALIZED (
    SELECT did, state, state <> 'active' AND told_time_us IS NOT NULL AND coalesce(tell_time_us, 0) <= told_time_us AS tell_again
    FROM repo
    WHERE tracked AND {selection}
    ORDER BY did
    FOR UPDATE
)
UPDATE repo r
SET state = CASE WHEN r.state IN ('active', 'inactive', 'discovered') THEN r.state WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END,
    reason = CASE WHEN r.state IN ('active', 'inactive', 'discovered') THEN r.reason ELSE 'resync' END,
    again = CASE WHEN r.state = 'active' THEN 'resync' END,
    attempts = CASE WHEN r.state = 'active' THEN r.attempts ELSE 0 END,
    next_attempt_at = CASE WHEN r.state = 'active' THEN r.next_attempt_at ELSE to_timestamp(%(now)s) END,
    tell_active = CASE WHEN c.tell_again THEN r.told_active ELSE r.tell_active END,
    tell_status = CASE WHEN c.tell_again THEN r.told_status ELSE r.tell_status END,
    tell_time_us = CASE WHEN c.tell_again THEN r.told_time_us + 1 ELSE r.tell_time_us END,
    history = repo_noted(r.history, to_timestamp(%(now)s),
                         CASE WHEN r.state IN ('active', 'inactive', 'discovered') THEN r.state WHEN r.host IS NULL THEN 'discovered' ELSE 'pending' END, 'resync'),
    updated_at = to_timestamp(%(now)s)
FROM chosen c WHERE r.did = c.did
RETURNING c.state, r.state;

-- give_up_host(host, now)      called by backfill.scheduler: in a batch, a host that has answered nobody for long
-- Index repo_pending. One statement: such a host may have a hundred thousand repos, and one after the other would take days.
UPDATE repo
SET state = 'quarantined', reason = 'host_down', last_error = 'the host answered nobody', updated_at = to_timestamp(%(now)s),
    history = repo_noted(history, to_timestamp(%(now)s), 'quarantined', 'host_down')
WHERE state = 'pending' AND tracked AND host = %(host)s AND batch IS NOT NULL;
