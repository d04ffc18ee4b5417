-- Each method of an authentication has a time of its own, and a device an identifier.
ALTER TABLE sessions
    ADD COLUMN amr_verified_at jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN device_id text NOT NULL DEFAULT '';

COMMENT ON COLUMN sessions.amr_verified_at IS 'The times at which methods of amr were verified: a JSON object that has a text as in RFC 3339 for each method; methods whose time is not known are left out';
COMMENT ON COLUMN sessions.device_id IS 'The caller''s own identifier of the device; empty if it gave none';
