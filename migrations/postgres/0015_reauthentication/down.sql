ALTER TABLE sessions
    DROP COLUMN metadata,
    DROP COLUMN reauthentication_lifetime,
    DROP COLUMN authentication_id,
    DROP COLUMN reauthentication_id,
    DROP COLUMN reauthentication_fingerprint;
