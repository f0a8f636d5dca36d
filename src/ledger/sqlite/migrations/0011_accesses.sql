-- The steps of accesses belong to no loan (src/ledger/accesses.rs), so a step no longer refers to
-- one. This edits the text of the schema, as SQLite's documentation allows for such a constraint: a
-- copy of the table would take minutes and twice the space in a large ledger.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, ' REFERENCES loans (id)', '')
    WHERE type = 'table' AND name = 'history';
PRAGMA writable_schema = RESET;
-- The listing of accesses, and their removal. Other processes read the schema again because of it.
CREATE INDEX history_accesses ON history (at) WHERE to_state = 'access';
