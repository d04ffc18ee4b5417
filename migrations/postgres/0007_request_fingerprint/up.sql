ALTER TABLE sessions ADD COLUMN request_fingerprint bytea;

COMMENT ON COLUMN sessions.request_id IS 'Idempotency key of the creation, unique within the tenant';
COMMENT ON COLUMN sessions.request_fingerprint IS 'SHA-256 of the request that created it and of its caller''s name: another request with the same request_id is refused. NULL without a request_id, and in rows of older versions, of which subject and client_id are compared';
