-- Makes audit_before a partition of the audit. This table has the records from before there were
-- partitions; migrations/postgres/0011_audit_by_day set it aside. The block does nothing unless
-- audit_before_key exists and the CHECK has been validated, because the server would otherwise
-- create the index and validate the CHECK under a lock.
DO $$
DECLARE
    next_day timestamptz;
BEGIN
    LOCK TABLE ONLY audit IN SHARE UPDATE EXCLUSIVE MODE;
    SELECT substring(pg_get_constraintdef(c.oid) FROM '''([^'']+)''')::timestamptz INTO next_day
    FROM pg_constraint AS c
    JOIN pg_class AS t ON t.oid = c.conrelid
    WHERE t.oid = to_regclass('audit_before')
        AND NOT t.relispartition
        AND c.conname = 'audit_before_at'
        AND c.convalidated
        AND to_regclass('audit_before_key') IS NOT NULL;
    IF next_day IS NULL THEN
        RETURN;
    END IF;
    -- Moves the records from before next_day that were written after the migration, and so went to
    -- audit_default.
    LOCK TABLE audit_default IN ACCESS EXCLUSIVE MODE;
    WITH moved AS (DELETE FROM audit_default WHERE at < next_day RETURNING *)
    INSERT INTO audit_before SELECT * FROM moved ON CONFLICT DO NOTHING;
    ALTER TABLE audit_before DROP CONSTRAINT IF EXISTS audit_before_pkey;
    ALTER TABLE audit_before REPLICA IDENTITY FULL;
    EXECUTE format('ALTER TABLE audit ATTACH PARTITION audit_before FOR VALUES FROM (MINVALUE) TO (%L)', next_day);
END
$$;
