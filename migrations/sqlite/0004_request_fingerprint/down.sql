ALTER TABLE sessions DROP COLUMN request_fingerprint;
