-- A session can be authenticated again, and updated.
ALTER TABLE sessions
    ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN reauthentication_lifetime interval,
    ADD COLUMN authentication_id uuid,
    ADD COLUMN reauthentication_id text,
    ADD COLUMN reauthentication_fingerprint bytea;

COMMENT ON COLUMN sessions.metadata IS 'Data that callers keep with the session, and that no token carries: a JSON object';
COMMENT ON COLUMN sessions.reauthentication_lifetime IS 'The lifetime that a reauthentication gives to the session; NULL if it does not extend it; hours and smaller units only';
COMMENT ON COLUMN sessions.authentication_id IS 'The authentication that new access tokens rest on; NULL for the one with which the session was created. All tokens of an authentication can be revoked by an entry of kind token';
COMMENT ON COLUMN sessions.reauthentication_id IS 'The request id of the last reauthentication, if it had one';
COMMENT ON COLUMN sessions.reauthentication_fingerprint IS 'SHA-256 over the fields and the caller of that request, which distinguishes it from other requests with the same id';
