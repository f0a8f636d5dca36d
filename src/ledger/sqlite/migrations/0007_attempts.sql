-- The loans of a library by when they were begun, with what the brake tells them apart by: limits on loans leave out the
-- refused ones, limits on attempts count them. It also serves the listing of a library.
CREATE INDEX loans_of_library ON loans (library, begun, state, end_reason);
DROP INDEX loans_begun;
