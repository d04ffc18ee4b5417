-- How far a key has come: published when it was created, and then, one after the other:
ALTER TABLE signing_keys ADD COLUMN activated_at BIGINT;  -- since when it makes new tokens
ALTER TABLE signing_keys ADD COLUMN retired_at BIGINT;    -- since when it makes none any more; what it made is accepted
ALTER TABLE signing_keys ADD COLUMN revoked_at BIGINT;    -- since when what it made is not accepted
UPDATE signing_keys SET activated_at = created_at;

-- One row: counts the changes of signing_keys.
CREATE TABLE key_ring (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version BIGINT NOT NULL
);

INSERT INTO key_ring (id, version) SELECT 1, count(*) > 0 FROM signing_keys;
