-- Requests that were answered, for support, until their time is over (src/ledger/requests.rs).
CREATE TABLE requests (
    id     uuid PRIMARY KEY,
    at     bigint NOT NULL,
    until  bigint NOT NULL,
    detail text NOT NULL
);
CREATE INDEX requests_until ON requests (until);
