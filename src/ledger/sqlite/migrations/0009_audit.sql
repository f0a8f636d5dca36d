-- A step's hash covers the loan's row as it is after the step, by a keyed and salted hash of the row. Steps of version 1 are
-- from before. Without its salt, a row's hash can be tied to no borrower, not even with the keys: retention erases it.
ALTER TABLE history ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE history ADD COLUMN salt BLOB CHECK (length(salt) = 16);
ALTER TABLE history ADD COLUMN loan_mac BLOB CHECK (length(loan_mac) = 32);
-- What stands in the chain for steps that were pruned: the hash of the last of them, and a seal that only the key makes.
CREATE TABLE anchors (
    last  INTEGER PRIMARY KEY,
    first INTEGER NOT NULL UNIQUE CHECK (first <= last),
    mac   BLOB NOT NULL CHECK (length(mac) = 32),
    seal  BLOB NOT NULL CHECK (length(seal) = 32)
) STRICT;
-- Loans that Bokbasen never accepted: pruned by age.
CREATE INDEX loans_never_lent ON loans (changed) WHERE state = 'refused' OR end_reason = 'rejected';
