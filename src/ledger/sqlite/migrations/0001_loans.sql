-- Times are milliseconds since the epoch, UTC.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

CREATE TABLE loans (
    id              TEXT PRIMARY KEY,
    library         TEXT NOT NULL,
    borrower        BLOB NOT NULL CHECK (length(borrower) = 16),
    isbn            INTEGER NOT NULL,
    reference       TEXT NOT NULL UNIQUE,
    lending_id      TEXT,
    state           TEXT NOT NULL CHECK (state IN
        ('intended', 'pending', 'accepted', 'unknown', 'refused', 'ending', 'ended')),
    begun           INTEGER NOT NULL,
    accepted        INTEGER,
    due             INTEGER,
    licence_id      TEXT,
    licence_type    TEXT,
    ended           INTEGER,
    end_reason      TEXT CHECK (end_reason IN ('returned', 'expired', 'cancelled', 'rejected')),
    refusal_code    TEXT,
    refusal_message TEXT,
    refusal_retry   INTEGER,
    changed         INTEGER NOT NULL,
    owner           TEXT NOT NULL,
    CHECK (state <> 'accepted' OR (lending_id IS NOT NULL AND due IS NOT NULL AND accepted IS NOT NULL)),
    CHECK (state <> 'pending' OR lending_id IS NOT NULL),
    CHECK (state NOT IN ('ending', 'ended') OR (ended IS NOT NULL AND end_reason IS NOT NULL)),
    CHECK (state <> 'refused' OR refusal_code IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- Invariant 2: at most one live loan for a library, a borrower and a title.
CREATE UNIQUE INDEX one_live_loan ON loans (library, borrower, isbn)
    WHERE state IN ('intended', 'pending', 'accepted', 'unknown', 'ending');
CREATE INDEX loans_by_reader ON loans (library, borrower, isbn, id);
CREATE INDEX loans_by_due ON loans (due) WHERE state = 'accepted';
CREATE INDEX loans_ending ON loans (ended) WHERE state = 'ending';
CREATE INDEX loans_undecided ON loans (owner) WHERE state IN ('intended', 'pending', 'unknown');

CREATE TABLE history (
    loan       TEXT NOT NULL REFERENCES loans (id),
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    from_state TEXT,
    to_state   TEXT NOT NULL,
    cause      TEXT NOT NULL,
    detail     TEXT,
    PRIMARY KEY (loan, seq)
) STRICT, WITHOUT ROWID;
