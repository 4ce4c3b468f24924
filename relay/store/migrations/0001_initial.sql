-- The state of one relay (or of several that share it). Texts that are compared or ordered are COLLATE "C": bytewise, as revs and DIDs are.

CREATE TABLE repo (
    did              text COLLATE "C" PRIMARY KEY,
    partition        smallint NOT NULL,                 -- DID hashed into relay.partitions
    host             text COLLATE "C",                  -- origin of the PDS: https://pds.example
    state            text COLLATE "C" NOT NULL CONSTRAINT repo_state CHECK (state IN
                     ('discovered', 'pending', 'active', 'synced', 'desynced', 'failed', 'inactive', 'quarantined')),
    reason           text COLLATE "C",                  -- why it is in that state: a short word
    rev              text COLLATE "C",                  -- newest one acknowledged by an ingester
    data             bytea CONSTRAINT repo_data CHECK (length(data) = 36),   -- root CID of that rev
    rev_begun        text COLLATE "C",                  -- newest snapshot whose delivery began
    rev_heard        text COLLATE "C",                  -- newest one that anybody told us of
    covers           text COLLATE "C",                  -- patterns, comma-joined; '' is everything; null: no complete snapshot yet
    told_active      boolean,                           -- last ACCOUNT that was acknowledged
    told_status      text,
    told_time_us     bigint,
    tell_active      boolean,                           -- newest ACCOUNT to be told; it waits while its time is above told_time_us
    tell_status      text,
    tell_time_us     bigint,
    told_identity_us bigint,                            -- time of the last IDENTITY that was acknowledged
    tell_handle      text,                              -- newest IDENTITY to be told; it waits while its time is above told_identity_us
    tell_pds         text,
    tell_identity_us bigint,
    check_due        text COLLATE "C" CONSTRAINT repo_check_due CHECK (check_due IN ('status', 'commit')),
    again            text COLLATE "C",                  -- another fetch was asked for while active: why
    attempts         integer NOT NULL DEFAULT 0,
    next_attempt_at  timestamptz NOT NULL DEFAULT now(),
    touched          boolean NOT NULL DEFAULT false,    -- anything was ever sent
    tracked          boolean NOT NULL DEFAULT true,     -- false: removed; the row stays
    batch            bigint,                            -- the backfill run whose target it is
    shard            text,                              -- the ingester that has its rows
    records          bigint NOT NULL DEFAULT 0,
    bytes            bigint NOT NULL DEFAULT 0,
    last_error       text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    synced_at        timestamptz
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);

-- Partial indexes: a repo at rest (synced) is in none but the primary key, repo_host and repo_batch, so 50 M rows stay cheap to keep.
CREATE INDEX repo_pending ON repo (host, next_attempt_at) WHERE state = 'pending' AND tracked;
CREATE INDEX repo_discovered ON repo (next_attempt_at) WHERE state = 'discovered' AND tracked;
CREATE INDEX repo_retry ON repo (next_attempt_at) WHERE state IN ('failed', 'desynced') AND tracked;
CREATE INDEX repo_check ON repo (did) WHERE check_due IS NOT NULL;
CREATE INDEX repo_tell ON repo (did) WHERE coalesce(tell_time_us, 0) > coalesce(told_time_us, 0)
                                     OR coalesce(tell_identity_us, 0) > coalesce(told_identity_us, 0);
CREATE INDEX repo_rare ON repo (state, did) WHERE state IN ('active', 'desynced', 'failed', 'inactive', 'quarantined');
CREATE INDEX repo_host ON repo (host, did) WHERE host IS NOT NULL;
CREATE INDEX repo_batch ON repo (batch, state) WHERE batch IS NOT NULL;

-- What we know of a PDS (or relay) as a server.
CREATE TABLE host (
    host            text COLLATE "C" PRIMARY KEY,
    status          text,                               -- as listHosts says: active, idle, offline, throttled, banned
    accounts        bigint,                             -- as listHosts says
    seq             bigint,                             -- as listHosts says
    last_success_at timestamptz,
    last_failure_at timestamptz,
    down_since      timestamptz,                        -- no success since
    failures        integer NOT NULL DEFAULT 0,         -- breaker periods without a success
    error           text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE identity (
    did         text COLLATE "C" PRIMARY KEY,
    signing_key text,                                   -- multikey
    pds         text,
    handle      text,
    resolved_at timestamptz,                            -- null: never
    failed_at   timestamptz,                            -- null: the last attempt succeeded
    error       text
);

-- First step: the row 0 stands for all partitions.
CREATE TABLE partition (
    id             integer PRIMARY KEY,
    owner          text,
    epoch          bigint NOT NULL DEFAULT 0,
    lease_until    timestamptz,
    renewed_at     timestamptz,
    upstream       text,                                -- whose sequence numbers `cursor` counts
    cursor         bigint,
    cursor_time_us bigint                               -- time of the cursor's event
);
INSERT INTO partition (id) VALUES (0);

-- One enumeration: what it lists, and how far it came. `batch` 0: not of a backfill.
CREATE TABLE listing (
    kind        text COLLATE "C" NOT NULL,
    host        text COLLATE "C" NOT NULL,
    param       text COLLATE "C" NOT NULL,
    batch       bigint NOT NULL,
    cursor      text,
    pages       bigint NOT NULL DEFAULT 0,
    repos       bigint NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    error       text,
    PRIMARY KEY (batch, kind, host, param)
);

CREATE TABLE batch (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    spec        text NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    note        text
);
CREATE UNIQUE INDEX batch_unfinished ON batch (md5(spec)) WHERE finished_at IS NULL;

CREATE TABLE dead_letter (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL,
    did        text COLLATE "C" NOT NULL,
    collection text COLLATE "C",
    rkey       text COLLATE "C",
    cid        text COLLATE "C",
    rev        text COLLATE "C",
    type       text,
    source     text,
    reason     text NOT NULL,
    message    text,
    ingester   text,
    attempts   integer NOT NULL DEFAULT 0,
    size       bigint NOT NULL DEFAULT 0,
    operation  bytea
);
CREATE INDEX dead_letter_did ON dead_letter (did, id);
-- The same operation refused again for the same reason is the same letter: a repo is fetched many times.
CREATE UNIQUE INDEX dead_letter_once ON dead_letter
    (did, coalesce(collection, ''), coalesce(rkey, ''), coalesce(cid, ''), coalesce(type, ''), reason);

CREATE TABLE incident (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind      text NOT NULL,
    text      text NOT NULL,
    at        timestamptz NOT NULL,
    closed_at timestamptz
);
CREATE INDEX incident_open ON incident (kind) WHERE closed_at IS NULL;
CREATE INDEX incident_closed ON incident (closed_at);

-- Processes that use the database, as `status` shows them.
CREATE TABLE instance (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL,
    command         text NOT NULL,                      -- run, tail, backfill
    pid             integer NOT NULL,
    host            text NOT NULL,
    version         text NOT NULL,
    phase           text NOT NULL,
    started_at      timestamptz NOT NULL,
    heartbeat_at    timestamptz NOT NULL,
    metrics_address text,
    grpc_address    text,
    status          jsonb
);
