ALTER TABLE replicas DROP COLUMN watchers;
