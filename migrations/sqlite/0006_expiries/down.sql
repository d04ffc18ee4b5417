ALTER TABLE sweeper DROP COLUMN expiries_recorded_until;
