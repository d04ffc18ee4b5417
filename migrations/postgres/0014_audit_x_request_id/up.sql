-- The audit names the call that asked for an action.
ALTER TABLE audit ADD COLUMN x_request_id text;
COMMENT ON COLUMN audit.x_request_id IS 'The identifier of the call (the header x-request-id) that asked for the action, if it had one';
DO $$
BEGIN
    -- The records from before there was a partition a day get the column with the whole once their
    -- table is a partition. Until then the table needs it, or it could not become one.
    IF (SELECT NOT relispartition FROM pg_class WHERE oid = to_regclass('audit_before')) THEN
        ALTER TABLE audit_before ADD COLUMN x_request_id text;
    END IF;
END
$$;
