-- Usage reports to Bokbasen (src/ledger/reports). A row is unique in what it reports: a package in
-- its library and licence, a loan that is paid by use in its loan.
CREATE TABLE reports (
    library      text COLLATE "C" NOT NULL,
    model        text COLLATE "C" NOT NULL CHECK (model IN ('PACKAGE', 'PAY_PER_LOAN')),
    subject      text COLLATE "C" NOT NULL,
    -- The loan that made it due. It may be pruned before its report.
    loan         uuid NOT NULL,
    bucket       smallint NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
    isbn         bigint NOT NULL,
    licence_id   text COLLATE "C",
    licence_type text COLLATE "C" NOT NULL,
    -- The day on which it became due, in Europe/Oslo: YYYY-MM-DD.
    date         text COLLATE "C" NOT NULL,
    -- The evidence: how far the title was read, in hundredths of a per cent, as the app says or by
    -- bytes delivered of bytes in all.
    evidence     text COLLATE "C" NOT NULL
                 CHECK (evidence IN ('accepted', 'progress', 'coverage', 'none')),
    progress     smallint CHECK (progress BETWEEN 0 AND 10000),
    covered      bigint CHECK (covered >= 0),
    size         bigint CHECK (size > 0),
    measured     bigint NOT NULL,
    -- In øre.
    price        bigint CHECK (price >= 0),
    state        text COLLATE "C" NOT NULL,
    -- The process that sent it, how often, and when last.
    owner        uuid,
    attempts     bigint NOT NULL DEFAULT 0,
    sent         bigint,
    note         text COLLATE "C",
    changed      bigint NOT NULL,
    CHECK (state <> 'sending' OR (owner IS NOT NULL AND sent IS NOT NULL AND price IS NOT NULL)),
    PRIMARY KEY (library, model, subject),
    UNIQUE (library, loan)
) WITH (fillfactor = 80);
CREATE INDEX reports_in_state ON reports (state, loan);
CREATE INDEX reports_by_date ON reports (date, library, loan);
CREATE INDEX reports_of_loan ON reports (loan);
-- When it was decided whether the loan is reported. The others are searched again.
ALTER TABLE loans ADD COLUMN assessed bigint;
