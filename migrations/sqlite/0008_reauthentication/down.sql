ALTER TABLE sessions DROP COLUMN reauthentication_fingerprint;
ALTER TABLE sessions DROP COLUMN reauthentication_id;
ALTER TABLE sessions DROP COLUMN reauthentication_lifetime;
ALTER TABLE sessions DROP COLUMN authentication_id;
ALTER TABLE sessions DROP COLUMN metadata;
