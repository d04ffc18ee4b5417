ALTER TABLE sessions DROP COLUMN replay;
ALTER TABLE sessions DROP COLUMN replay_limit;
