ALTER TABLE sessions
    DROP COLUMN amr_verified_at,
    DROP COLUMN device_id;
