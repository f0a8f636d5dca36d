//! PgBouncer in front of a server, in transaction mode.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::super::external_program::program;
use super::folder::{Folder, free_port};
use super::watched_process::WatchedProcess;
use super::{ADMIN, MAX_START_ATTEMPTS, Postgres, ROLE, START_TIMEOUT};

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running PgBouncer. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    /// Ended before its folder is removed.
    _process: WatchedProcess,
    _folder: Folder,
    port: u16,
}

impl PgBouncer {
    /// Starts PgBouncer for all databases of this server, with at most this number of connections
    /// to each. [`Database::url_at`](super::Database::url_at) with its port is the way through it.
    pub(crate) async fn start(server: &Postgres, pool_size: u32) -> Option<PgBouncer> {
        let program = program("pgbouncer", "pgbouncer")?;
        let folder = Folder::create("loangate-pgbouncer-");
        let password = server.password();
        let users = format!("\"{ADMIN}\" \"{password}\"\n\"{ROLE}\" \"{password}\"\n");
        let users = folder.write("users.txt", &users);
        for _ in 0..MAX_START_ATTEMPTS {
            let port = free_port();
            // SCRAM takes a large part of a second for each connection in a debug build.
            let configuration = format!(
                "[databases]\n\
                 * = host=127.0.0.1 port={server_port}\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\n\
                 listen_port = {port}\n\
                 unix_socket_dir =\n\
                 auth_type = md5\n\
                 auth_file = {users}\n\
                 pool_mode = transaction\n\
                 default_pool_size = {pool_size}\n\
                 max_client_conn = 1000\n\
                 server_tls_sslmode = prefer\n",
                server_port = server.port(),
                users = users.display(),
            );
            let command = [program.clone(), folder.write("pgbouncer.ini", &configuration)];
            // SIGTERM is PgBouncer's immediate shutdown.
            let process = WatchedProcess::start(&command, "TERM", folder.path(), folder.account);
            if becomes_ready(&process, port, &folder).await {
                return Some(PgBouncer { _process: process, _folder: folder, port });
            }
            process.end_and_keep_folder().await;
        }
        panic!("PgBouncer does not start: {}", folder.log());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// Waits until PgBouncer accepts connections. Returns `false` if it ended instead.
async fn becomes_ready(process: &WatchedProcess, port: u16, folder: &Folder) -> bool {
    let deadline = Instant::now() + START_TIMEOUT;
    // Its port is checked after its life, since another program may serve the port.
    loop {
        sleep(POLL_INTERVAL).await;
        if !process.is_running() {
            return false;
        }
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return true;
        }
        assert!(Instant::now() < deadline, "PgBouncer is not ready: {}", folder.log());
    }
}
