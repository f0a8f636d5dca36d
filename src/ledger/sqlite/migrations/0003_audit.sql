-- Every step of every loan in one order, each bearing a keyed hash of itself and of the one before. The hashes of steps
-- from before this migration are filled in at the next opening.
CREATE TABLE steps (
    number     INTEGER PRIMARY KEY,
    loan       TEXT NOT NULL REFERENCES loans (id),
    at         INTEGER NOT NULL,
    from_state TEXT,
    to_state   TEXT NOT NULL,
    cause      TEXT NOT NULL,
    detail     TEXT,
    mac        BLOB CHECK (length(mac) = 32)
) STRICT;
INSERT INTO steps (loan, at, from_state, to_state, cause, detail)
    SELECT loan, at, from_state, to_state, cause, detail FROM history ORDER BY at, loan, seq;
DROP TABLE history;
ALTER TABLE steps RENAME TO history;
CREATE INDEX history_of_loan ON history (loan, number);
