-- What commands beside a service change in rows that the service may have in memory.

-- Written in the transaction that changes the rows, read and taken away by who holds the lease. Nobody holds it: nothing is written.
CREATE TABLE notice (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text COLLATE "C" NOT NULL CONSTRAINT notice_kind CHECK (kind IN ('added', 'removed', 'resync')),
    dids text[] COLLATE "C" NOT NULL
);

-- A letter whose operation is to be sent again: when that was asked for. It goes away when the operation is acknowledged.
ALTER TABLE dead_letter ADD COLUMN requeued_at timestamptz;
CREATE INDEX dead_letter_requeued ON dead_letter (id) WHERE requeued_at IS NOT NULL;
