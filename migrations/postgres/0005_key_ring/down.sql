ALTER TABLE feed_head DROP COLUMN ring;
ALTER TABLE signing_keys DROP COLUMN activated_at, DROP COLUMN retired_at, DROP COLUMN revoked_at;
