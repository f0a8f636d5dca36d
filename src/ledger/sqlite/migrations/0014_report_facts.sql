-- When the fact occurred that made the report due. It never changes. Rows without it have that of
-- their first measure.
ALTER TABLE reports ADD COLUMN due_since INTEGER;
