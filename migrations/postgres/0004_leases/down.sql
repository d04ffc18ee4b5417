ALTER TABLE replicas DROP COLUMN holds_for;
ALTER TABLE feed_head DROP COLUMN timeline, DROP COLUMN database;
DROP FUNCTION feed_timeline();
