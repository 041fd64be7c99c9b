-- When the newest command arrived that may always be given, such as a stop: one that arrived before it and is not stored yet
-- must not follow it.
ALTER TABLE command_order ADD COLUMN stopped_at timestamptz;
