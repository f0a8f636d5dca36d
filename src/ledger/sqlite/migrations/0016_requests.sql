-- Requests that were answered, for support, until their time is over (src/ledger/requests.rs).
CREATE TABLE requests (
    id     TEXT PRIMARY KEY,
    at     INTEGER NOT NULL,
    until  INTEGER NOT NULL,
    detail TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_until ON requests (until);
