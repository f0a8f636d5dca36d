-- Loans that a balance found absent at Bokbasen: since when, and in which run last
-- (src/ledger/doubts.rs).
CREATE TABLE doubts (
    loan    TEXT PRIMARY KEY,
    library TEXT NOT NULL,
    since   INTEGER NOT NULL,
    run     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX doubts_of_library ON doubts (library);
-- How many loans a balance has ended recently.
CREATE INDEX history_by_balance ON history (at) WHERE cause = 'balance' AND to_state = 'ended';
CREATE INDEX loans_by_lending_id ON loans (lending_id) WHERE lending_id IS NOT NULL;

-- When a process first allowed a byte of the loan to leave; from then on the loan is returned,
-- never cancelled.
ALTER TABLE loans ADD COLUMN opened INTEGER;
-- Any loan of an earlier version that was accepted may have been opened.
UPDATE loans SET opened = accepted WHERE accepted IS NOT NULL;
-- The change feed: the steps with which a loan stops opening files (src/ledger/feed.rs).
CREATE INDEX history_closed ON history (number)
    WHERE to_state IN ('ending', 'ended') AND from_state <> 'ending';
