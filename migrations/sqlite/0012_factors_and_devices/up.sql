-- Each method of an authentication has a time of its own, and a device an identifier.
-- The times at which methods of amr were verified: a JSON object that has a text as in RFC 3339 for
-- each method. Methods whose time is not known are left out.
ALTER TABLE sessions ADD COLUMN amr_verified_at TEXT NOT NULL DEFAULT '{}';
-- The caller's own identifier of the device; empty if it gave none.
ALTER TABLE sessions ADD COLUMN device_id TEXT NOT NULL DEFAULT '';
