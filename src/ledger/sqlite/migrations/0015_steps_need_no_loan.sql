-- Migration 11 edited the text of the schema. A table with other words would refuse every access,
-- so this fails there, and the program does not start.
CREATE TEMP TABLE checked
    (n INTEGER CONSTRAINT history_still_refers_to_loans CHECK (n = 0));
INSERT INTO checked SELECT count(*) FROM pragma_foreign_key_list('history');
DROP TABLE checked;
