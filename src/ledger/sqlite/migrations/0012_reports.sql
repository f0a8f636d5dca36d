-- Usage reports to Bokbasen (src/ledger/reports). A row is unique in what it reports: a package in
-- its library and licence, a loan that is paid by use in its loan.
CREATE TABLE reports (
    library      TEXT NOT NULL,
    model        TEXT NOT NULL CHECK (model IN ('PACKAGE', 'PAY_PER_LOAN')),
    subject      TEXT NOT NULL,
    -- The loan that made it due. It may be pruned before its report.
    loan         TEXT NOT NULL UNIQUE,
    isbn         INTEGER NOT NULL,
    licence_id   TEXT,
    licence_type TEXT NOT NULL,
    -- The day on which it became due, in Europe/Oslo: YYYY-MM-DD.
    date         TEXT NOT NULL,
    -- The evidence: how far the title was read, in hundredths of a per cent, as the app says or by
    -- bytes delivered of bytes in all.
    evidence     TEXT NOT NULL CHECK (evidence IN ('accepted', 'progress', 'coverage', 'none')),
    progress     INTEGER CHECK (progress BETWEEN 0 AND 10000),
    covered      INTEGER CHECK (covered >= 0),
    size         INTEGER CHECK (size > 0),
    measured     INTEGER NOT NULL,
    -- In øre.
    price        INTEGER CHECK (price >= 0),
    state        TEXT NOT NULL,
    -- The process that sent it, how often, and when last.
    owner        TEXT,
    attempts     INTEGER NOT NULL DEFAULT 0,
    sent         INTEGER,
    note         TEXT,
    changed      INTEGER NOT NULL,
    CHECK (state <> 'sending' OR (owner IS NOT NULL AND sent IS NOT NULL AND price IS NOT NULL)),
    PRIMARY KEY (library, model, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX reports_in_state ON reports (state, loan);
CREATE INDEX reports_by_date ON reports (date, library, loan);
-- When it was decided whether the loan is reported. The others are searched again.
ALTER TABLE loans ADD COLUMN assessed INTEGER;
CREATE INDEX loans_to_report ON loans (licence_type, id)
    WHERE assessed IS NULL AND accepted IS NOT NULL;
