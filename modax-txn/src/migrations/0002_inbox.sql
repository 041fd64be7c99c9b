-- What a consumer has seen, written in the consumer's own transaction.
CREATE TABLE {s}.inbox (
    consumer    text NOT NULL,
    id          uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, id)
);
CREATE INDEX inbox_received ON {s}.inbox (received_at);

-- What a caller has asked for under a name of its own, and what was answered.
CREATE TABLE {s}.idempotency (
    key        text PRIMARY KEY,
    digest     bytea NOT NULL,
    outcome    bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX idempotency_expires ON {s}.idempotency (expires_at);
