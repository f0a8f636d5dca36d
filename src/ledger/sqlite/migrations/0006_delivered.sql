-- What was delivered under a loan, of each file: all bytes, and the union of their ranges (src/loan/ranges.rs).
CREATE TABLE delivered (
    loan   TEXT NOT NULL REFERENCES loans (id),
    file   TEXT NOT NULL,
    bytes  INTEGER NOT NULL CHECK (bytes >= 0),
    ranges BLOB NOT NULL,
    PRIMARY KEY (loan, file)
) STRICT, WITHOUT ROWID;
