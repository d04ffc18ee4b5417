-- SHA-256 of the request that created the session and of its caller's name: another request with
-- the same request_id is refused. NULL without a request_id, and in rows of older versions, of
-- which subject and client_id are compared.
ALTER TABLE sessions ADD COLUMN request_fingerprint BLOB;
