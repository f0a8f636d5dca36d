//! A database of a test's own on a server.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use super::ROLE;

/// Time for a clean-up, which a paused or overloaded server may not answer.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// An empty database. It is dropped, with its connections, shortly after this value.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    password: String,
    /// The superuser's, to the database `postgres`.
    admin: PgConnectOptions,
}

impl Database {
    /// Creates a database whose owner is [`ROLE`], which is no superuser.
    pub(super) async fn create(name: String, admin: PgConnectOptions, password: &str) -> Database {
        let mut connection = admin.connect().await.unwrap();
        let create = format!("CREATE DATABASE {name} OWNER {ROLE} TEMPLATE template0");
        connection.execute(AssertSqlSafe(create)).await.unwrap();
        connection.close().await.unwrap();
        Database { name, password: password.to_owned(), admin }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the URL for the database's owner, with its password.
    pub(crate) fn url(&self) -> String {
        self.url_at(self.admin.get_port())
    }

    /// Returns the URL by another port, for example that of a proxy.
    pub(crate) fn url_at(&self, port: u16) -> String {
        let Database { name, password, .. } = self;
        format!("postgres://{ROLE}:{password}@127.0.0.1:{port}/{name}")
    }

    /// Connects as the database's owner.
    pub(crate) async fn connect(&self) -> PgConnection {
        self.admin
            .clone()
            .username(ROLE)
            .password(&self.password)
            .database(&self.name)
            .connect()
            .await
            .unwrap()
    }

    /// Connects as the superuser.
    pub(crate) async fn connect_as_admin(&self) -> PgConnection {
        self.admin.clone().database(&self.name).connect().await.unwrap()
    }

    /// Terminates all connections to this database. Returns how many there were.
    pub(crate) async fn terminate_backends(&self) -> usize {
        let mut connection = self.admin.connect().await.unwrap();
        let terminated = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
        );
        terminated.bind(&self.name).fetch_all(&mut connection).await.unwrap().len()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let admin = self.admin.clone();
        // On a thread of its own, since the test's runtime may end now. The server may be gone.
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let dropped = async {
                let mut connection = admin.connect().await?;
                connection.execute(AssertSqlSafe(drop)).await
            };
            let _ = runtime.block_on(async { tokio::time::timeout(DROP_TIMEOUT, dropped).await });
        });
    }
}
