-- A session can be authenticated again, and updated.
-- Data that callers keep with the session, and that no token carries: a JSON object.
ALTER TABLE sessions ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';
-- The authentication that new access tokens rest on; NULL for the one with which the session was
-- created. All tokens of an authentication can be revoked by an entry of kind 'token'.
ALTER TABLE sessions ADD COLUMN authentication_id BLOB;
-- The lifetime that a reauthentication gives to the session; NULL if it does not extend it.
ALTER TABLE sessions ADD COLUMN reauthentication_lifetime BIGINT;
-- The request id of the last reauthentication, if it had one, and SHA-256 over the fields and the
-- caller of that request, which distinguishes it from other requests with the same id.
ALTER TABLE sessions ADD COLUMN reauthentication_id TEXT;
ALTER TABLE sessions ADD COLUMN reauthentication_fingerprint BLOB;
