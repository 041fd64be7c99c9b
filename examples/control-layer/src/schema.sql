-- The control layer's tables. Applied by whichever instance starts first, in one transaction, under an advisory lock.
-- Only followed by other versions, never edited: the checksum of what was applied is compared at each start.

-- Every device that ever reported. Its row is the lock under which its boots are decided.
CREATE TABLE devices (
    device_id     text PRIMARY KEY,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    removed_at    timestamptz
);

-- A boot is named by its start as its first writer took it (boots.rs). Times are this database's, rounded to milliseconds.
CREATE TABLE device_boots (
    device_id      text NOT NULL REFERENCES devices,
    started_at     timestamptz NOT NULL,
    earliest_start timestamptz NOT NULL,
    last_ts        bigint NOT NULL,
    last_seen_at   timestamptz NOT NULL,
    PRIMARY KEY (device_id, started_at)
);

-- One row for each reading, whoever heard it and however often. `time` = start of the boot + the device's timestamp.
-- Partitions are made ahead, a day each; the default one takes what a device with a wrong clock sends.
CREATE TABLE sensor_data (
    device_id           text NOT NULL,
    time                timestamptz NOT NULL,
    digest              bytea NOT NULL,
    device_timestamp    bigint NOT NULL,
    boot_started_at     timestamptz,
    motor_currents      double precision[] NOT NULL,
    vibration_x         double precision NOT NULL,
    vibration_y         double precision NOT NULL,
    vibration_z         double precision NOT NULL,
    vibration_magnitude double precision NOT NULL,
    temperatures        double precision[] NOT NULL,
    stored_by           text NOT NULL,
    stored_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (device_id, time, digest)
) PARTITION BY RANGE (time);
CREATE TABLE sensor_data_default PARTITION OF sensor_data DEFAULT;

-- A row for each change of a device's safety state.
CREATE TABLE safety_events (
    device_id         text NOT NULL,
    time              timestamptz NOT NULL,
    emergency_stop    boolean NOT NULL,
    door_closed       boolean NOT NULL,
    overload_detected boolean NOT NULL,
    temperature_ok    boolean NOT NULL,
    is_safe           boolean NOT NULL,
    reported_by       text NOT NULL,
    PRIMARY KEY (device_id, time)
) PARTITION BY RANGE (time);
CREATE TABLE safety_events_default PARTITION OF safety_events DEFAULT;

-- Whoever inserts (device, window) asks the AI layer; the answer comes into the same row.
CREATE TABLE ai_analysis (
    device_id    text NOT NULL,
    window_start timestamptz NOT NULL,
    window_end   timestamptz NOT NULL,
    asked_by     text NOT NULL,
    asked_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    status       text NOT NULL DEFAULT 'asked' CHECK (status IN ('asked', 'answered', 'failed')),
    answered_at  timestamptz,
    analysis     jsonb,
    reason       text,
    PRIMARY KEY (device_id, window_start)
) PARTITION BY RANGE (window_start);
CREATE TABLE ai_analysis_default PARTITION OF ai_analysis DEFAULT;

-- The audit of all commands; few enough to be kept in one table. `command_id` is also the id of the message in the outbox.
CREATE TABLE control_commands (
    command_id      uuid PRIMARY KEY,
    command_type    text NOT NULL,
    parameters      jsonb NOT NULL,
    status          text NOT NULL CHECK (status IN ('accepted', 'executed', 'blocked', 'failed')),
    reason          text,
    instance_id     text NOT NULL,
    idempotency_key text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz,
    settled_at      timestamptz
);
CREATE INDEX control_commands_key ON control_commands (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX control_commands_open ON control_commands (created_at) WHERE status = 'accepted';

-- Commands are published in the order in which their transactions took this row's lock.
CREATE TABLE command_order (only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one));
INSERT INTO command_order DEFAULT VALUES;
