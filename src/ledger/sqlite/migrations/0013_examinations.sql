-- When a person asked for the loan to be examined by the next balance of its library.
ALTER TABLE loans ADD COLUMN examine INTEGER;
CREATE INDEX loans_to_examine ON loans (library, id) WHERE examine IS NOT NULL;
