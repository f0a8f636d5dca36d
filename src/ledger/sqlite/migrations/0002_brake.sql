-- The spending brake counts the loans that a library, or one of its borrowers, has begun of late. Those that never came
-- to be cost nothing and are left out.
CREATE INDEX loans_begun ON loans (library, begun)
    WHERE state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected');
CREATE INDEX loans_begun_by ON loans (library, borrower, begun)
    WHERE state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected');
