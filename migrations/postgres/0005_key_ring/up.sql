ALTER TABLE signing_keys
    ADD COLUMN activated_at timestamptz,
    ADD COLUMN retired_at timestamptz,
    ADD COLUMN revoked_at timestamptz;
UPDATE signing_keys SET activated_at = created_at;

COMMENT ON TABLE signing_keys IS 'Keys, sealed under the master key and bound to kid, purpose and algorithm. One of each purpose is active, one is to be the next.';
COMMENT ON COLUMN signing_keys.created_at IS 'When it was written, and so published';
COMMENT ON COLUMN signing_keys.activated_at IS 'Since when it makes new tokens; until then it is pending';
COMMENT ON COLUMN signing_keys.retired_at IS 'Since when it makes none any more; what it made is accepted';
COMMENT ON COLUMN signing_keys.revoked_at IS 'Since when what it made is not accepted';

ALTER TABLE feed_head ADD COLUMN ring bigint NOT NULL DEFAULT 0;
UPDATE feed_head SET ring = 1 WHERE EXISTS (SELECT FROM signing_keys);

COMMENT ON TABLE feed_head IS 'One row: the last seq given out. Whoever writes to blacklist or to signing_keys locks it last and until the commit.';
COMMENT ON COLUMN feed_head.ring IS 'Counts the changes of signing_keys. Each of them takes a seq, so that it is known when every replica knows of it';
