-- The ledger in PostgreSQL, or in an engine that speaks its protocol.
--
-- Times are milliseconds since the epoch, UTC. Nodes make the ids. Every key begins with the
-- library, so that the tables can be distributed by it; meta, schema_version and members are small
-- and are copied to every shard.
CREATE TABLE meta (
    name  text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL
);

-- Grows when an operator reconciles a ledger that lost steps. A bigint in network byte order, and
-- its seal, which the first process that opens the ledger adds.
INSERT INTO meta (name, value) VALUES ('epoch', int8send(0));

CREATE TABLE members (
    member   uuid PRIMARY KEY,
    process  uuid NOT NULL,
    -- The schema version that its program knows.
    program  bigint NOT NULL DEFAULT 0,
    joined   bigint NOT NULL,
    -- Settings of the process on which others depend, in milliseconds: how long its lease lasts,
    -- and how long it delivers without a read of the change feed.
    lease     bigint NOT NULL CHECK (lease > 0),
    freshness bigint NOT NULL CHECK (freshness > 0),
    renewals bigint NOT NULL DEFAULT 0,
    polls    bigint NOT NULL DEFAULT 0,
    -- When the member was declared dead or left. The row stays, so that a gate which has seen it
    -- notices that the database lost it.
    fenced   bigint,
    has_left boolean NOT NULL DEFAULT false
);
-- The rows of a month are many if a gate fails at each start, and few of them are read.
CREATE INDEX members_by_end ON members (fenced);

CREATE TABLE loans (
    library         text COLLATE "C" NOT NULL,
    id              uuid NOT NULL,
    bucket          smallint NOT NULL CHECK (bucket BETWEEN 0 AND 1023),
    borrower        bytea NOT NULL CHECK (length(borrower) = 16),
    isbn            bigint NOT NULL,
    reference       text COLLATE "C" NOT NULL,
    lending_id      text COLLATE "C",
    state           text COLLATE "C" NOT NULL CHECK (state IN
        ('intended', 'pending', 'accepted', 'unknown', 'refused', 'ending', 'ended')),
    begun           bigint NOT NULL,
    accepted        bigint,
    due             bigint,
    licence_id      text COLLATE "C",
    licence_type    text COLLATE "C",
    ended           bigint,
    end_reason      text COLLATE "C"
                    CHECK (end_reason IN ('returned', 'expired', 'cancelled', 'rejected')),
    refusal_code    text COLLATE "C",
    refusal_message text COLLATE "C",
    refusal_retry   bigint,
    progress        smallint CHECK (progress BETWEEN 0 AND 10000),
    forgotten       bigint,
    opened          bigint,
    changed         bigint NOT NULL,
    -- When the loan stopped opening files, by the clock of the database. The change feed reads it.
    closed          bigint,
    owner           uuid NOT NULL,
    PRIMARY KEY (library, id),
    -- The balance searches a reference in all libraries, too.
    UNIQUE (reference, library),
    CHECK (state <> 'accepted'
           OR (lending_id IS NOT NULL AND due IS NOT NULL AND accepted IS NOT NULL)),
    CHECK (state <> 'pending' OR lending_id IS NOT NULL),
    CHECK (state NOT IN ('ending', 'ended') OR (ended IS NOT NULL AND end_reason IS NOT NULL)),
    CHECK (state <> 'refused' OR refusal_code IS NOT NULL)
) WITH (fillfactor = 80);

-- Invariant 2: at most one live loan for a library, a borrower and a title.
CREATE UNIQUE INDEX one_live_loan ON loans (library, borrower, isbn)
    WHERE state IN ('intended', 'pending', 'accepted', 'unknown', 'ending');
CREATE INDEX loans_of_key ON loans (library, borrower, isbn, id);
CREATE INDEX loans_by_due ON loans (due, library, id) WHERE state = 'accepted';
CREATE INDEX loans_ending ON loans (closed, library, id) WHERE state = 'ending';
CREATE INDEX loans_closed ON loans (closed, library, id) WHERE closed IS NOT NULL;
CREATE INDEX loans_undecided ON loans (owner) WHERE state IN ('intended', 'pending', 'unknown');
CREATE INDEX loans_of_library ON loans (library, begun, state, end_reason);
CREATE INDEX loans_begun_by ON loans (library, borrower, begun);
CREATE INDEX loans_by_lending_id ON loans (lending_id, library) WHERE lending_id IS NOT NULL;
CREATE INDEX loans_by_id ON loans (id);
CREATE INDEX loans_to_forget ON loans (coalesce(ended, changed))
    WHERE state IN ('refused', 'ended') AND forgotten IS NULL;
CREATE INDEX loans_never_lent ON loans (changed) WHERE state = 'refused' OR end_reason = 'rejected';
-- An index for each filter of the support API, in the order of its listing.
CREATE INDEX loans_by_begun ON loans (begun, id);
CREATE INDEX loans_in_state ON loans (state, begun);
CREATE INDEX loans_of_title ON loans (isbn, begun);
CREATE INDEX loans_of_borrower ON loans (borrower, library, isbn, id);

-- A chain has the steps that one process wrote for one library.
CREATE TABLE chains (
    library text COLLATE "C" NOT NULL,
    chain   uuid NOT NULL,
    -- The number of committed transactions, which says whether a commit without a response is
    -- durable.
    batch   bigint NOT NULL,
    number  bigint NOT NULL,
    mac     bytea NOT NULL,
    opened  bigint NOT NULL,
    -- When the process of the chain had ended, and a hash of the newest step then. A late write
    -- removes both.
    closed  bigint,
    seal    bytea CHECK (length(seal) = 32),
    PRIMARY KEY (library, chain)
) WITH (fillfactor = 50);
CREATE INDEX chains_not_sealed ON chains (library, chain) WHERE seal IS NULL;

CREATE TABLE history (
    library    text COLLATE "C" NOT NULL,
    chain      uuid NOT NULL,
    number     bigint NOT NULL,
    loan       uuid NOT NULL,
    at         bigint NOT NULL,
    from_state text COLLATE "C",
    to_state   text COLLATE "C" NOT NULL,
    cause      text COLLATE "C" NOT NULL,
    detail     text COLLATE "C",
    version    bigint NOT NULL,
    salt       bytea CHECK (length(salt) = 16),
    loan_mac   bytea CHECK (length(loan_mac) = 32),
    mac        bytea NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (library, chain, number)
);
CREATE INDEX history_of_loan ON history (library, loan, at, chain, number);
CREATE INDEX history_by_balance ON history (library, at)
    WHERE cause = 'balance' AND to_state = 'ended';

-- What stands in a chain for steps that were pruned.
CREATE TABLE anchors (
    library text COLLATE "C" NOT NULL,
    chain   uuid NOT NULL,
    first   bigint NOT NULL,
    last    bigint NOT NULL,
    mac     bytea NOT NULL CHECK (length(mac) = 32),
    seal    bytea NOT NULL CHECK (length(seal) = 32),
    PRIMARY KEY (library, chain, last)
);

CREATE TABLE delivered (
    library text COLLATE "C" NOT NULL,
    loan    uuid NOT NULL,
    file    text COLLATE "C" NOT NULL,
    bytes   bigint NOT NULL CHECK (bytes >= 0),
    ranges  bytea NOT NULL,
    PRIMARY KEY (library, loan, file)
) WITH (fillfactor = 80);

CREATE TABLE doubts (
    library text COLLATE "C" NOT NULL,
    loan    uuid NOT NULL,
    since   bigint NOT NULL,
    run     bigint NOT NULL,
    PRIMARY KEY (library, loan)
);
