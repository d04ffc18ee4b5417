ALTER TABLE audit DROP COLUMN x_request_id;
DO $$
BEGIN
    IF (SELECT NOT relispartition FROM pg_class WHERE oid = to_regclass('audit_before')) THEN
        ALTER TABLE audit_before DROP COLUMN x_request_id;
    END IF;
END
$$;
