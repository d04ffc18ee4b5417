-- The audit becomes a table with a partition a day, so that old records go by dropping a table.
--
-- Records from before stay where they are, in what is audit_before from now on. It is attached as
-- the partition of all days up to this one once its CHECK has been validated, which reads the whole
-- table and is therefore done after this transaction (attach_audit_before.sql).
--
-- Its key is a unique index and no constraint: pg_restore --clean tries to remove the constraint of
-- each partition by itself, which the server refuses, and does not try that with indexes.
--
-- A table that its owner has divided already, and an engine that knows no partitions, are left
-- alone.
DO $$
DECLARE
    next_day timestamptz := (date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC';
    grantee text;
    granted record;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'audit'::regclass) <> 'r' THEN
        RETURN;
    END IF;
    ALTER TABLE audit RENAME TO audit_before;
    ALTER INDEX audit_pkey RENAME TO audit_before_pkey;
    CREATE TABLE audit (LIKE audit_before INCLUDING ALL) PARTITION BY RANGE (at);
    ALTER TABLE audit DROP CONSTRAINT audit_pkey;
    CREATE UNIQUE INDEX audit_key ON audit (at, id);
    CREATE TABLE audit_default PARTITION OF audit DEFAULT;
    -- Without a primary key, a publication of all tables would forbid to delete from it.
    ALTER TABLE audit_default REPLICA IDENTITY FULL;

    -- By clocks that are ahead: rarely any.
    INSERT INTO audit SELECT * FROM audit_before WHERE at >= next_day;
    DELETE FROM audit_before WHERE at >= next_day;
    EXECUTE format('ALTER TABLE audit_before ADD CONSTRAINT audit_before_at CHECK (at < %L) NOT VALID', next_day);

    -- Default privileges may have granted what had been taken from the table.
    -- Access by the whole needs no right on a part.
    FOR grantee IN
        SELECT DISTINCT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
        FROM pg_class AS c, aclexplode(c.relacl) AS acl
        WHERE c.oid IN ('audit'::regclass, 'audit_default'::regclass) AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE ALL ON audit, audit_default FROM %s', grantee);
    END LOOP;
    FOR granted IN
        SELECT acl.privilege_type AS privilege, acl.is_grantable,
            CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END AS grantee
        FROM pg_class AS c, aclexplode(c.relacl) AS acl
        WHERE c.oid = 'audit_before'::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format(
            'GRANT %s ON audit TO %s%s',
            granted.privilege,
            granted.grantee,
            CASE WHEN granted.is_grantable THEN ' WITH GRANT OPTION' END
        );
    END LOOP;

    COMMENT ON TABLE audit IS 'Who did what to whose sessions, why, when and from where. Rows are added and never changed. One partition a day (UTC), made by the sweeper some days ahead and dropped when it is old.';
    COMMENT ON TABLE audit_default IS 'Records of the audit for whose day there is no partition. The sweeper deletes them row by row.';
    COMMENT ON TABLE audit_before IS 'Records of the audit from before it had a partition a day. The sweeper deletes them row by row, and drops the table at last.';
    COMMENT ON INDEX audit_key IS 'By time: who asks later. What is written twice is there once';
EXCEPTION
    WHEN feature_not_supported OR syntax_error OR undefined_function OR wrong_object_type THEN
        RAISE NOTICE 'the audit stays one table: %', SQLERRM;
END
$$;
