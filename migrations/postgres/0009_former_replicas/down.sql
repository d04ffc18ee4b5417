ALTER TABLE sweeper DROP COLUMN expiries_recorded_until;
DROP TABLE former_replicas;
ALTER TABLE replicas DROP COLUMN address;
