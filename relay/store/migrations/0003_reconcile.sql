-- Reconciles: what upstream lists is compared with what is stored, and what differs is marked.

-- One pass; at most one is open, and a start goes on with it. Counts are those of all its pages so far.
CREATE TABLE reconcile (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope        text NOT NULL,                         -- JSON: what it compares and finds; another one is another pass
    began_at     timestamptz NOT NULL DEFAULT clock_timestamp(),   -- before its first page, by the server's clock
    finished_at  timestamptz,
    hosts_total  bigint NOT NULL DEFAULT 0,
    hosts_failed bigint NOT NULL DEFAULT 0,             -- gave no complete answer
    compared     bigint NOT NULL DEFAULT 0,
    differed     bigint NOT NULL DEFAULT 0,
    queued       bigint NOT NULL DEFAULT 0,
    found        bigint NOT NULL DEFAULT 0,             -- DIDs without a row, discovered
    note         text                                   -- how it ended, where that was not completely; `baseline`: never ran
);
CREATE UNIQUE INDEX reconcile_open ON reconcile ((true)) WHERE finished_at IS NULL;
CREATE INDEX reconcile_finished ON reconcile (finished_at) WHERE finished_at IS NOT NULL;

-- Repos that were seen to differ, until they are looked at again: what a stream brings meanwhile is no difference.
CREATE TABLE reconcile_candidate (
    did      text COLLATE "C" PRIMARY KEY,
    host     text COLLATE "C" NOT NULL,                 -- who says so
    rev      text COLLATE "C",
    active   boolean,
    status   text,
    missing  boolean NOT NULL DEFAULT false,            -- not in its host's complete listing
    found_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX reconcile_candidate_age ON reconcile_candidate (found_at);

-- Which DIDs a host has listed in this pass, as hashes, a row a page: 8 bytes a repo (a table of DIDs: 150, with its index).
CREATE TABLE reconcile_seen (
    host   text COLLATE "C" NOT NULL,
    page   bigint NOT NULL,
    hashes bigint[] NOT NULL,
    PRIMARY KEY (host, page)
);

-- An open incident that happens again stays one row; a pass that began before its last time does not close it.
ALTER TABLE incident ADD COLUMN seen_at timestamptz NOT NULL DEFAULT clock_timestamp();
