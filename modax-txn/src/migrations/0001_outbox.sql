-- Messages written in the transactions of their producers, read by the relay that owns the lease.
--
-- `seq` orders messages of one key: it is drawn inside the producer's transaction, after that transaction locked the key's row.
-- It is never an identity: after an asynchronous failover the sequence repeats itself. Cache 1, or two sessions would draw
-- numbers in another order than they locked.
CREATE SEQUENCE {s}.outbox_seq AS bigint CACHE 1;

CREATE TABLE {s}.outbox (
    id              uuid PRIMARY KEY,
    seq             bigint NOT NULL DEFAULT nextval('{s}.outbox_seq'),
    topic           text NOT NULL,
    key             text,
    payload         bytea NOT NULL,
    headers         text[],
    idempotency_key text UNIQUE,
    enqueued_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz,
    status          text NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'delivered', 'expired', 'rejected', 'parked')),
    attempts        integer NOT NULL DEFAULT 0,
    reason          text,
    settled_at      timestamptz,
    settled_epoch   bigint
) WITH (
    -- Every row is updated once and deleted later: let vacuum follow closely instead of at a fifth of the table.
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
ALTER SEQUENCE {s}.outbox_seq OWNED BY {s}.outbox.seq;

CREATE INDEX outbox_pending ON {s}.outbox (seq) WHERE status = 'pending';
CREATE INDEX outbox_parked ON {s}.outbox (key) WHERE status = 'parked';
CREATE INDEX outbox_settled ON {s}.outbox (settled_at) WHERE settled_at IS NOT NULL;

-- Who may publish. One row; `epoch` rises with each owner, `token` names one acquisition. All times are this database's.
CREATE TABLE {s}.lease (
    name        text PRIMARY KEY,
    epoch       bigint NOT NULL,
    token       uuid,
    owner       text NOT NULL,
    expires_at  timestamptz NOT NULL,
    acquired_at timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO {s}.lease VALUES ('relay', 0, NULL, '', 'epoch', 'epoch');
