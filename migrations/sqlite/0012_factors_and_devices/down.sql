ALTER TABLE sessions DROP COLUMN device_id;
ALTER TABLE sessions DROP COLUMN amr_verified_at;
