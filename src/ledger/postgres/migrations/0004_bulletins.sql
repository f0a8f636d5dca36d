-- What each gate shares with the others for their operators: its problems and its last minute. A small
-- table like members, whose live rows it belongs to.
CREATE TABLE bulletins (
    member  uuid PRIMARY KEY,
    -- By the clock of the database.
    written bigint NOT NULL,
    content text NOT NULL CHECK (octet_length(content) <= 32768)
);
