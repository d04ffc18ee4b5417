-- Sessions are searched by the identifier of their device. Unlike tenants and subjects, the column
-- has the collation of the database. The index compares by bytes, so that no upgrade of the system's
-- locales can disorder it.
CREATE INDEX sessions_of_device ON sessions (tenant, device_id COLLATE "C", is_over, id)
    WHERE device_id <> '';
COMMENT ON INDEX sessions_of_device IS 'Listing of a device. Sessions without an identifier of a device have no entry';
