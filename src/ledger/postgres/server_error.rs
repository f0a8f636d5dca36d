//! Classifies errors of PostgreSQL: what they say about a connection and about the server.

/// The server or this database no longer accepts writes or connections: read-only (25006), shut
/// down by an operator (57P01), crashed (57P02), and starting or stopping (57P03).
const OF_SERVER: [&str; 4] = ["25006", "57P01", "57P02", "57P03"];
/// The class of connection failures.
const CONNECTION_CLASS: &str = "08";
/// The server closed this connection, since it was idle in a transaction (25P03) or idle (57P05).
/// Or something between has taken its prepared statements (26000), or has given their names to
/// another program (42P05): on a new connection they are prepared again.
const OF_ONE_CONNECTION: [&str; 4] = ["25P03", "57P05", "26000", "42P05"];

/// Returns whether the error makes all connections to this server unusable.
pub(in crate::ledger) fn is_of_server(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            OF_SERVER.contains(&code.as_ref()) || code.starts_with(CONNECTION_CLASS)
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) => true,
        _ => false,
    }
}

/// Returns whether the connection must not be used again after this error.
pub(in crate::ledger) fn is_of_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            OF_ONE_CONNECTION.contains(&code.as_ref()) || is_of_server(error)
        }
        // What a query made of a complete response says nothing about the connection.
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::TypeNotFound { .. } => false,
        _ => true,
    }
}
