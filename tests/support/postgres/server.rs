//! A PostgreSQL server with a new data folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use data_encoding::BASE64;
use rustix::process::Signal;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use super::super::external_program::{output_text, program, run};
use super::folder::{Folder, free_port, random_password};
use super::watched_process::{WatchedProcess, wait_for};
use super::{ADMIN, Authority, Database, MAX_START_ATTEMPTS, ROLE, START_TIMEOUT};

/// Interval at which a starting server is polled, and the timeout of one poll.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const POLL_TIMEOUT: Duration = Duration::from_secs(5);
/// Settings of each server. Commits are durable, since that is what tests rely on. The log of
/// writes stays small, since several servers may run on a machine whose disk is nearly full.
///
/// Shared memory in files of the data folder does not outlive a killed server.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
shared_buffers = '64MB'
max_connections = 200
dynamic_shared_memory_type = 'mmap'
min_wal_size = '32MB'
max_wal_size = '64MB'
";

/// A running or stopped server. Dropping it ends the server and removes its data.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// Ended before its folder is removed. `None` while it restarts.
    process: Mutex<Option<WatchedProcess>>,
    folder: Folder,
    /// Folder of `initdb` and `postgres`.
    programs: PathBuf,
    port: u16,
    password: String,
    databases: AtomicU32,
}

impl Postgres {
    /// Returns whether the programs of a server are installed, as [`program`] does.
    pub(crate) fn is_installed() -> bool {
        programs().is_some()
    }

    /// Returns the server that all tests of this process share. Do not stop it or pause it.
    pub(crate) async fn shared() -> Option<&'static Postgres> {
        static SHARED: OnceCell<Option<Postgres>> = OnceCell::const_new();
        SHARED.get_or_init(Postgres::start).await.as_ref()
    }

    /// Starts a server.
    pub(crate) async fn start() -> Option<Postgres> {
        Postgres::start_with(&[]).await
    }

    /// Starts a server with these settings, such as `("fsync", "off")`.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Option<Postgres> {
        let server = Postgres::initialize().await?;
        server.configure(settings);
        Some(server.start_on_free_port().await)
    }

    /// Starts a server that requires TLS, with a certificate of this authority for 127.0.0.1.
    pub(crate) async fn start_with_tls(authority: &Authority) -> Option<Postgres> {
        let server = Postgres::initialize().await?;
        let (certificate, key) = authority.issue();
        let certificate = server.folder.write("server.pem", &certificate);
        let key = server.folder.write("server.key", &key);
        server.configure(&[
            ("ssl", "on"),
            ("ssl_cert_file", certificate.to_str().unwrap()),
            ("ssl_key_file", key.to_str().unwrap()),
        ]);
        server.folder.write("data/pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n");
        Some(server.start_on_free_port().await)
    }

    /// Creates an empty database, which is dropped with its handle.
    pub(crate) async fn database(&self) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        Database::create(name, self.admin(), &self.password).await
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the id of the server's first process.
    pub(crate) fn process_id(&self) -> u32 {
        self.with_process(WatchedProcess::id)
    }

    /// Returns the URL for the superuser and the database `postgres`.
    pub(crate) fn admin_url(&self) -> String {
        format!("postgres://{ADMIN}:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    /// Returns the password of the superuser and of [`ROLE`].
    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Returns the server's log, for messages of failed tests.
    pub(crate) fn log(&self) -> String {
        self.folder.log()
    }

    /// Returns the folder that holds everything of the server.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops the server as an administrator does: it aborts transactions and closes connections.
    pub(crate) async fn stop(&self) {
        let process = self.with_process(|process| process.signal(Signal::INT));
        wait_for(&[process]).await;
    }

    /// Kills the server and all its processes with SIGKILL, as a loss of power would.
    pub(crate) async fn stop_immediately(&self) {
        let processes = self.with_process(|process| process.signal_all(Signal::KILL));
        wait_for(&processes).await;
    }

    /// Starts a stopped server, which recovers its data, on the same port. A running server is
    /// stopped first.
    pub(crate) async fn restart(&self) {
        let process = self.process.lock().unwrap().take();
        if let Some(process) = process {
            process.end_and_keep_folder().await;
        }
        let process = self.run();
        assert!(self.becomes_ready(&process).await, "no restart: {}", self.log());
        *self.process.lock().unwrap() = Some(process);
    }

    /// Returns whether the server runs, also if it is paused.
    pub(crate) fn is_running(&self) -> bool {
        self.with_process(WatchedProcess::is_running)
    }

    /// Suspends all processes of the server with SIGSTOP. Connections stay open and stall.
    pub(crate) fn pause(&self) {
        self.with_process(|process| process.signal_all(Signal::STOP));
    }

    /// Continues a paused server.
    pub(crate) fn resume(&self) {
        self.with_process(|process| process.signal_all(Signal::CONT));
    }

    fn with_process<T>(&self, action: impl FnOnce(&WatchedProcess) -> T) -> T {
        let process = self.process.lock().unwrap();
        action(process.as_ref().expect("the server does not restart meanwhile"))
    }

    /// Returns the superuser's options for the database `postgres`.
    fn admin(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(ADMIN)
            .password(&self.password)
            .database("postgres")
            .ssl_mode(PgSslMode::Prefer)
    }

    /// Creates the data folder.
    async fn initialize() -> Option<Postgres> {
        let programs = programs()?;
        let folder = Folder::create("loangate-postgres-");
        let password = random_password();
        let password_file = folder.write("password", &password);
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.current_dir(folder.path()).arg("--pgdata").arg(folder.path().join("data"));
        initdb.args(["--username", ADMIN, "--auth", "scram-sha-256", "--pwfile"]);
        initdb.arg(password_file).args(["--locale", "C", "--encoding", "UTF8", "--no-sync"]);
        if let Some(account) = folder.account {
            account.apply(&mut initdb);
        }
        let output = run(&mut initdb).await;
        assert!(output.status.success(), "initdb: {}", output_text(&output));
        Some(Postgres {
            process: Mutex::new(None),
            folder,
            programs,
            port: 0,
            password,
            databases: AtomicU32::new(0),
        })
    }

    fn configure(&self, settings: &[(&str, &str)]) {
        let file = self.folder.path().join("data/postgresql.conf");
        let mut file = std::fs::File::options().append(true).open(file).unwrap();
        file.write_all(SETTINGS.as_bytes()).unwrap();
        for (name, value) in settings {
            writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
    }

    async fn start_on_free_port(mut self) -> Postgres {
        for _ in 0..MAX_START_ATTEMPTS {
            self.port = free_port();
            let process = self.run();
            if self.becomes_ready(&process).await {
                *self.process.lock().unwrap() = Some(process);
                self.create_role().await;
                return self;
            }
            process.end_and_keep_folder().await;
        }
        panic!("PostgreSQL does not start: {}", self.log());
    }

    fn run(&self) -> WatchedProcess {
        let [data, port] = [self.folder.path().join("data"), self.port.to_string().into()];
        let command = [self.programs.join("postgres"), "-D".into(), data, "-p".into(), port];
        // SIGQUIT is PostgreSQL's immediate shutdown.
        WatchedProcess::start(&command, "QUIT", self.folder.path(), self.folder.account)
    }

    /// Waits until the server accepts connections. Returns `false` if it ended instead.
    async fn becomes_ready(&self, process: &WatchedProcess) -> bool {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(Ok(connection)) = timeout(POLL_TIMEOUT, self.admin().connect()).await {
                let _ = connection.close().await;
                return true;
            }
            if !process.is_running() {
                return false;
            }
            assert!(Instant::now() < deadline, "PostgreSQL is not ready: {}", self.log());
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn create_role(&self) {
        let mut connection = self.admin().connect().await.unwrap();
        let verifier = quick_verifier(&self.password);
        let create = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{verifier}'");
        connection.execute(AssertSqlSafe(create)).await.unwrap();
        connection.close().await.unwrap();
    }
}

/// Returns a SCRAM verifier of this password with one iteration (RFC 5802). The 4096 iterations of
/// PostgreSQL's default take a large part of a second for each connection in a debug build.
fn quick_verifier(password: &str) -> String {
    let mac = |key: &[u8], text: &[u8]| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::sign(&key, text).as_ref().to_vec()
    };
    let salt = b"a salt of a test";
    let salted = mac(password.as_bytes(), &[&salt[..], &[0, 0, 0, 1]].concat());
    let stored = digest::digest(&digest::SHA256, &mac(&salted, b"Client Key"));
    let [salt, stored, server] = [&salt[..], stored.as_ref(), &mac(&salted, b"Server Key")]
        .map(|bytes| BASE64.encode(bytes));
    format!("SCRAM-SHA-256$1:{salt}${stored}:{server}")
}

/// Returns the folder of the newest PostgreSQL. Debian keeps it outside `PATH`.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            programs.join("postgres").is_file().then_some((version, programs))
        })
        .max();
    match newest {
        Some((_, programs)) => Some(programs),
        None => program("postgres", "postgresql")?.parent().map(Path::to_owned),
    }
}
