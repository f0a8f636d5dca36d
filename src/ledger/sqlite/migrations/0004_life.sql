-- Steps whose hash is still to be filled in are found without a walk through all of them.
CREATE INDEX history_unlinked ON history (number) WHERE mac IS NULL;
-- The feed of ends: what the outbox has not taken in yet.
CREATE INDEX history_ends ON history (number) WHERE to_state = 'ending';
-- How far the borrower has read, as the app says, in hundredths of a per cent.
ALTER TABLE loans ADD COLUMN progress INTEGER CHECK (progress BETWEEN 0 AND 10000);
-- When the borrower was forgotten: from then on the column borrower holds a random value (privacy.retention).
ALTER TABLE loans ADD COLUMN forgotten INTEGER;
CREATE INDEX loans_to_forget ON loans (coalesce(ended, changed))
    WHERE state IN ('refused', 'ended') AND forgotten IS NULL;
