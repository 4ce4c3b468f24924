-- What a service (`run`, `tail`) keeps beside what a batch does.

-- The filter that every repo was compared with, patterns comma-joined; null: no comparison has been complete.
-- A wider one makes the repos that do not cover it pending, in batches; it is stored when they all are.
ALTER TABLE partition ADD COLUMN filter_compared text COLLATE "C",
                      ADD COLUMN filter          text COLLATE "C";   -- the filter in force at the holder; null: no service holds the lease

-- Targets that a `backfill` handed over to the service that holds the lease.
ALTER TABLE batch ADD COLUMN handed_over_at  timestamptz,
                  ADD COLUMN sources         text,                   -- JSON: what the holder enumerates; null: the DIDs are in already
                  ADD COLUMN enumerated_at   timestamptz,            -- every target has its row
                  ADD COLUMN failed_listings text;                   -- JSON: listings without a complete answer
CREATE INDEX batch_handed_over ON batch (id) WHERE handed_over_at IS NOT NULL AND finished_at IS NULL;

-- A service tries quarantined repos again by itself, less and less often.
ALTER TABLE repo ADD COLUMN retry_at   timestamptz,                  -- when; null: not yet decided
                 ADD COLUMN retried_at timestamptz,                  -- when it did so last
                 ADD COLUMN retries    integer;                      -- how often since it was synced last
CREATE INDEX repo_quarantined ON repo (retry_at) WHERE state = 'quarantined' AND tracked;
