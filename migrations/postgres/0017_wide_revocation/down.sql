ALTER TABLE audit
    DROP COLUMN client_id,
    DROP COLUMN created_before,
    DROP COLUMN authenticated_before;
DO $$
BEGIN
    IF (SELECT NOT relispartition FROM pg_class WHERE oid = to_regclass('audit_before')) THEN
        ALTER TABLE audit_before
            DROP COLUMN client_id,
            DROP COLUMN created_before,
            DROP COLUMN authenticated_before;
    END IF;
END
$$;
DROP INDEX blacklist_walked;
DELETE FROM blacklist WHERE kind < 'b';
ALTER TABLE blacklist
    DROP COLUMN ended_sessions,
    DROP COLUMN walked_at;
