DO $$
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'audit'::regclass) = 'r' THEN
        RETURN;
    END IF;
    CREATE TABLE audit_whole (LIKE audit INCLUDING ALL);
    INSERT INTO audit_whole SELECT * FROM audit;
    IF to_regclass('audit_before') IS NOT NULL THEN
        INSERT INTO audit_whole SELECT * FROM audit_before ON CONFLICT DO NOTHING;
    END IF;
    DROP TABLE audit;
    DROP TABLE IF EXISTS audit_before;
    ALTER TABLE audit_whole RENAME TO audit;
    ALTER TABLE audit ADD CONSTRAINT audit_pkey PRIMARY KEY USING INDEX audit_whole_at_id_idx;
END
$$;
