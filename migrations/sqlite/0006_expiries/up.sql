-- The audit has every session that expired before this instant and had not been ended.
ALTER TABLE sweeper ADD COLUMN expiries_recorded_until BIGINT NOT NULL DEFAULT 0;
