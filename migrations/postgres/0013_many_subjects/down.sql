ALTER TABLE sessions ALTER COLUMN subject RESET (n_distinct);
ALTER TABLE sessions ALTER COLUMN tenant RESET (n_distinct);
