//! A ledger of a million loans, built once and stored under the target directory.
//!
//! The rows are inserted by SQL, since the ledger syncs every step, and the indexes are built at
//! the end. `loangate audit verify` and `loangate ledger check` then check the result, so that a
//! mistake here cannot distort a measurement.

use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use loangate::clock::Clock;
use loangate::ledger::{AuditKey, AuditStep, Head, Ledger};
use loangate::loan::{Borrower, Isbn, LibraryId, LoanKey};
use loangate::reader::Readers;
use loangate::telemetry::Metrics;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, Row, Sqlite, SqliteConnection,
};
use uuid::Uuid;

/// Version of the rows; increment it when they change.
const BUILD: u32 = 2;
pub(crate) const LOANS: u64 = 1_000_000;
/// Number of live loans, which are the newest.
pub(crate) const LIVE: u64 = 300_000;
/// Number of readers. Each has at most one loan of a title at a time.
const READERS: u64 = 250_000;
/// Number of groups of live loans that can be made to expire.
pub(crate) const GROUPS: u64 = 4;
pub(crate) const GROUP: u64 = 10_000;
pub(crate) const LIBRARY: &str = "NO-0301000";
const ROWS_AT_ONCE: usize = 500;
const LOAN_TIME: SignedDuration = SignedDuration::from_hours(21 * 24);

/// Returns the reader of a loan.
pub(crate) fn reader_of(number: u64) -> String {
    format!("reader-{}", number % READERS)
}

/// Returns the title of a loan, one of a thousand.
pub(crate) fn isbn_of(number: u64) -> Isbn {
    let digits = format!("978829999{:03}", number / READERS * 250 + number % READERS % 250);
    let sum: u32 =
        digits.bytes().zip([1, 3].into_iter().cycle()).map(|(d, w)| u32::from(d - b'0') * w).sum();
    format!("{digits}{}", (10 - sum % 10) % 10).parse().unwrap()
}

pub(crate) fn key_of(readers: &Readers, number: u64) -> LoanKey {
    let library: LibraryId = LIBRARY.parse().unwrap();
    let borrower = readers.pseudonym(library, &reader_of(number));
    LoanKey { library, borrower, isbn: isbn_of(number) }
}

/// Returns the number of the first live loan of a group.
pub(crate) fn first_of(group: u64) -> u64 {
    LOANS - LIVE + group * GROUP
}

/// Returns Bokbasen's ID of a loan. Loans of the groups have the first IDs that a sandbox assigns.
pub(crate) fn lending_id_of(number: u64) -> String {
    let place = (number + LIVE).checked_sub(LOANS).filter(|place| *place < GROUPS * GROUP);
    place.map_or_else(|| format!("FAR{number:08}"), |place| format!("BL{:08}", place + 1))
}

pub(crate) fn reference_of(number: u64) -> String {
    format!("lg-{number:032x}")
}

/// Returns a due time beyond any run that identifies a group.
pub(crate) fn due_of(group: Option<u64>) -> i64 {
    4_000_000_000_000 + group.map_or(GROUPS, |group| group) as i64
}

/// A replacement in the configuration of a gate with such a ledger, so that neither its log nor its
/// limits take part in what is measured.
pub(crate) const CONFIG: (&str, &str) = (
    "[ledger]",
    "[log]\nlevel = \"warn\"\n\n[limits]\nexempt_networks = [\"127.0.0.0/8\"]\n\n[ledger]",
);

/// Returns a pseudo-random number of a loan, the same for the same turn.
pub(crate) fn anywhere(turn: u64, of: u64) -> u64 {
    turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % of
}

/// Copies such a ledger and its keys into this directory.
pub(crate) async fn copy_to(directory: &Path) {
    let from = self::directory().await;
    for part in ["certs", "data"] {
        std::fs::create_dir_all(directory.join(part)).unwrap();
        for entry in std::fs::read_dir(from.join(part)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let copy = directory.join(part).join(entry.file_name());
                std::fs::copy(entry.path(), copy).unwrap();
            }
        }
    }
}

/// Returns the directory with such a ledger and its keys, and builds it if it is missing.
pub(crate) async fn directory() -> PathBuf {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ledger/sqlite/migrations");
    let newest = std::fs::read_dir(migrations)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .max()
        .unwrap();
    let schema = newest.to_str().unwrap().split_once('_').unwrap().0.to_owned();
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("million-{schema}-{BUILD}"));
    if !built.exists() {
        let part = built.with_extension("part");
        let _ = std::fs::remove_dir_all(&part);
        let began = std::time::Instant::now();
        println!("building a ledger of {LOANS} loans in {}", built.display());
        build(&part).await;
        std::fs::rename(&part, &built).unwrap();
        println!("built in {:.0?}", began.elapsed());
    }
    built
}

pub(crate) fn config(directory: &Path) -> loangate::config::Config {
    loangate::config::load(&directory.join("config.toml")).unwrap().config
}

pub(crate) fn readers(directory: &Path) -> Readers {
    Readers::new(&config(directory).readers, Clock::system()).unwrap()
}

/// Opens the ledger of a directory, also while others have it open.
pub(crate) async fn open(directory: &Path) -> Ledger {
    let readers = readers(directory);
    let settings = config(directory).ledger;
    let key = AuditKey::new(&readers.audit_key());
    Ledger::open(
        &settings,
        &readers.key_fingerprint(),
        key,
        Clock::system(),
        Metrics::new().unwrap(),
    )
    .await
    .unwrap()
}

async fn build(directory: &Path) {
    loangate(&["init", "--dir", directory.to_str().unwrap()]);
    open(directory).await.close().await; // creates the tables
    let file = config(directory).ledger.sqlite_file().unwrap().to_owned();
    let mut connection =
        SqliteConnectOptions::new().filename(&file).foreign_keys(false).connect().await.unwrap();
    for pragma in ["journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000"] {
        run(&mut connection, &format!("PRAGMA {pragma}")).await;
    }
    let indexes = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL";
    let indexes = sqlx::query(indexes).fetch_all(&mut connection).await.unwrap();
    for index in &indexes {
        run(&mut connection, &format!("DROP INDEX {}", index.get::<String, _>("name"))).await;
    }
    fill(&mut connection, &readers(directory)).await;
    for index in &indexes {
        run(&mut connection, index.get("sql")).await;
    }
    run(&mut connection, "PRAGMA journal_mode = WAL").await;
    connection.close().await.unwrap();
    open(directory).await.close().await; // stores the newest link separately
    let config = directory.join("config.toml");
    for command in [["ledger", "check"], ["audit", "verify"]] {
        loangate(&[command[0], command[1], "--config", config.to_str().unwrap()]);
    }
}

fn loangate(arguments: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_loangate")).args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

async fn run(connection: &mut SqliteConnection, statement: &str) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.unwrap();
}

struct Made {
    number: u64,
    id: String,
    borrower: Borrower,
    begun: i64,
}

async fn fill(connection: &mut SqliteConnection, readers: &Readers) {
    let key = AuditKey::new(&readers.audit_key());
    let mut head = Head::default();
    let built = Clock::system().now();
    // Spread over the last four hundred days, in order.
    let apart = SignedDuration::from_hours(400 * 24).as_millis() / i128::from(LOANS);
    let numbers: Vec<u64> = (0..LOANS).collect();
    run(connection, "BEGIN").await;
    for numbers in numbers.chunks(ROWS_AT_ONCE) {
        let rows: Vec<Made> = numbers
            .iter()
            .map(|number| {
                let age = i64::try_from(apart * i128::from(LOANS - number)).unwrap();
                let begun = built.as_millisecond() - age;
                let (second, nanos) = (begun / 1000, begun % 1000 * 1_000_000);
                let stamp =
                    uuid::Timestamp::from_unix(uuid::NoContext, second as u64, nanos as u32);
                let id = Uuid::new_v7(stamp).to_string();
                Made { number: *number, id, borrower: key_of(readers, *number).borrower, begun }
            })
            .collect();
        insert_loans(connection, &rows).await;
        let steps: Vec<AuditStep<'_>> = rows.iter().flat_map(steps_of).collect();
        for steps in steps.chunks(ROWS_AT_ONCE) {
            insert_steps(connection, steps, &key, &mut head).await;
        }
    }
    run(connection, "COMMIT").await;
}

fn is_live(row: &Made) -> bool {
    row.number >= LOANS - LIVE
}

fn ended(row: &Made) -> i64 {
    row.begun + i64::try_from(LOAN_TIME.as_millis()).unwrap()
}

async fn insert_loans(connection: &mut SqliteConnection, rows: &[Made]) {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO loans (id, library, borrower, isbn, reference, lending_id, state, begun, \
         accepted, due, licence_id, \
         licence_type, ended, end_reason, changed, owner) ",
    );
    query.push_values(rows, |mut values, row| {
        let live = is_live(row);
        let group = (row.number + LIVE).checked_sub(LOANS).map(|place| place / GROUP);
        values
            .push_bind(row.id.as_str())
            .push_bind(LIBRARY)
            .push_bind(row.borrower.as_bytes().as_slice());
        values.push_bind(i64::try_from(isbn_of(row.number).number()).unwrap());
        values.push_bind(reference_of(row.number)).push_bind(lending_id_of(row.number));
        values.push_bind(if live { "accepted" } else { "ended" });
        values.push_bind(row.begun).push_bind(row.begun + 200);
        values.push_bind(if live {
            due_of(group.filter(|group| *group < GROUPS))
        } else {
            ended(row)
        });
        values.push_bind("L1").push_bind("PACKAGE");
        values.push_bind((!live).then(|| ended(row))).push_bind((!live).then_some("expired"));
        values.push_bind(if live { row.begun + 200 } else { ended(row) + 300 });
        values.push_bind("00000000000000000000000000000000");
    });
    query.build().execute(connection).await.unwrap();
}

/// Returns steps of version 1, whose hashes do not cover the row of the loan.
fn steps_of(row: &Made) -> Vec<AuditStep<'_>> {
    let mut before = None;
    let mut step = |at, to, cause| {
        let (loan, from) = (row.id.as_str(), before.replace(to));
        AuditStep { loan, at, from, to, cause, detail: None, loan_mac: None }
    };
    let mut steps = vec![
        step(row.begun, "intended", "reader"),
        step(row.begun + 100, "pending", "begin"),
        step(row.begun + 200, "accepted", "poll"),
    ];
    if !is_live(row) {
        steps.push(step(ended(row), "ending", "expiry"));
        steps.push(step(ended(row) + 300, "ended", "outbox"));
    }
    steps
}

async fn insert_steps(
    connection: &mut SqliteConnection,
    steps: &[AuditStep<'_>],
    key: &AuditKey,
    head: &mut Head,
) {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO history (number, loan, at, from_state, to_state, cause, detail, mac) ",
    );
    query.push_values(steps, |mut values, step| {
        *head = head.next(step, key);
        values.push_bind(head.number).push_bind(step.loan).push_bind(step.at).push_bind(step.from);
        values
            .push_bind(step.to)
            .push_bind(step.cause)
            .push_bind(None::<String>)
            .push_bind(head.mac.clone());
    });
    query.build().execute(connection).await.unwrap();
}
