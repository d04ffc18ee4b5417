ALTER TABLE sessions DROP COLUMN replay, DROP COLUMN replay_limit;
