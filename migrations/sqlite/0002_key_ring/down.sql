-- The version before takes the newest key for the one in use, and knows one algorithm.
DELETE FROM signing_keys WHERE revoked_at IS NOT NULL OR activated_at IS NULL OR algorithm NOT IN ('EdDSA', 'HS256');
DROP TABLE key_ring;
ALTER TABLE signing_keys DROP COLUMN activated_at;
ALTER TABLE signing_keys DROP COLUMN retired_at;
ALTER TABLE signing_keys DROP COLUMN revoked_at;
