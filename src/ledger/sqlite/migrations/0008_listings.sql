-- An index for each filter of the support API, in the order of its listing: the newest first, by when a loan was begun.
-- (Of a library: loans_of_library.) A borrower has few loans, which are sorted.
CREATE INDEX loans_by_begun ON loans (begun);
CREATE INDEX loans_in_state ON loans (state, begun);
CREATE INDEX loans_of_title ON loans (isbn, begun, library);
CREATE INDEX loans_of_borrower ON loans (borrower, library, isbn, id);
DROP INDEX loans_by_reader;
