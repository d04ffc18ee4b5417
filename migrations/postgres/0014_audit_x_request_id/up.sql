-- The audit names the call that asked for an action.
ALTER TABLE audit ADD COLUMN x_request_id text;
COMMENT ON COLUMN audit.x_request_id IS 'The identifier of the call (the header x-request-id) that asked for the action, if it had one';
DO $$
BEGIN
    -- audit_before holds the records from before there were daily partitions. If it is attached to
    -- the audit, the statement above has added the column. If not, it needs the column, because a
    -- partition must have the columns of its parent.
    IF (SELECT NOT relispartition FROM pg_class WHERE oid = to_regclass('audit_before')) THEN
        ALTER TABLE audit_before ADD COLUMN x_request_id text;
    END IF;
END
$$;
