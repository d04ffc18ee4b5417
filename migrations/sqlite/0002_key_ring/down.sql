DROP TABLE key_ring;
ALTER TABLE signing_keys DROP COLUMN activated_at;
ALTER TABLE signing_keys DROP COLUMN retired_at;
ALTER TABLE signing_keys DROP COLUMN revoked_at;
