DROP TABLE former_replicas;
ALTER TABLE replicas DROP COLUMN address;
