-- Whole, so that a step of a loan's life leaves it alone: the few loans of a borrower within an hour are looked at
-- themselves.
DROP INDEX loans_begun_by;
CREATE INDEX loans_begun_by ON loans (library, borrower, begun);
