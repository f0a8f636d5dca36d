//! Compares what earlier processes on this machine have seen with the database, before this process
//! joins. `open` calls it.
//!
//! Two files of each process witness its writes: `chain_heads` has the newest links of its chains,
//! and `renewals_file` the renewals of all members. The first is exact, and is stored for some days
//! after its process has ended. The second is superfluous when this process has written its own.
//!
//! If the database lost steps, the begins of all gates are closed and this start fails, so that an
//! operator notices it. Later starts succeed while begins are closed: somebody must compare the
//! ledger with Bokbasen.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::clock_difference::ClockDifference;
use super::closed_begins::{self, ANY_EPOCH, ARE_CLOSED, EPOCH, REMEDY};
use super::epoch::{EpochSeals, FORGED, FORGED_SENTENCE};
use super::head_files;
use super::loss_detector::KnownBefore;
use super::members_table::DATABASE_NOW;
use super::observer::Member;
use super::renewals_file::{self, StoredRenewals, remove};
use super::seen_renewals::SeenRenewals;
use crate::clock::{self, Clock};
use crate::ledger::LedgerError;
use crate::ledger::audit::chain_heads::{self, HeadsFile};
use crate::ledger::audit::process_file::remove_leftovers;

/// How long the heads of an ended process are stored, and of how many processes.
const HEADS_RETENTION: Duration = Duration::from_secs(7 * 86_400);
const MAX_HEADS_FILES: usize = 64;
/// The age from which a temporary file belongs to no write under way.
const LEFTOVER_AGE: Duration = Duration::from_secs(86_400);

/// Compares the files of earlier processes with the database, and removes old ones of processes
/// that have ended.
///
/// # Errors
/// [`LedgerError::DatabaseOlder`] if the database lost steps and begins were open. They are closed
/// then.
/// The same for an epoch without a valid seal, with [`LedgerError::damaged`].
pub(super) async fn compare(
    connection: &mut PgConnection,
    directory: &Path,
    seals: &EpochSeals,
    clock: &Clock,
) -> Result<KnownBefore, LedgerError> {
    let ledger = seals.ledger();
    let unreadable = |source| LedgerError::File { file: directory.to_owned(), source };
    let heads = head_files::read(directory, ledger)?;
    let renewals = renewals_file::read_all(directory, ledger).map_err(unreadable)?;
    let database = DatabaseState::read(connection, seals, clock).await;
    let database = database.map_err(LedgerError::Server)?;
    let files = EarlierFiles { heads, renewals };
    if database.epoch == FORGED {
        return refuse_forged_epoch(connection, &database, &files).await;
    }
    let Some(witness) = files.witness(connection, &database).await.map_err(LedgerError::Server)?
    else {
        // By a clock that is ahead, files would be removed that later processes need.
        if database.now.is_some() {
            let now = clock.machine_now();
            remove(&files.old_heads(&database, clock::before(now, HEADS_RETENTION)));
            let suffixes = [chain_heads::SUFFIX, renewals_file::SUFFIX];
            remove_leftovers(directory, ledger, &suffixes, clock::before(now, LEFTOVER_AGE));
        }
        return Ok(files.known(&database));
    };
    let epoch = files.newest_epoch().max(database.epoch);
    if let Err(error) = closed_begins::close(connection, witness.process, epoch).await {
        tracing::error!(%error, "cannot close the begins of the other gates");
    }
    if !database.begins_are_closed {
        return Err(LedgerError::DatabaseOlder { head_file: witness.path });
    }
    let file = witness.path.display();
    tracing::error!(
        %file,
        "the database lacks what this file names; starting while begins are closed; {REMEDY}"
    );
    Ok(KnownBefore { epoch, has_lost: true, ..KnownBefore::default() })
}

/// Refuses a database whose epoch is forged, as one that lost steps.
async fn refuse_forged_epoch(
    connection: &mut PgConnection,
    database: &DatabaseState,
    files: &EarlierFiles,
) -> Result<KnownBefore, LedgerError> {
    let closed = closed_begins::close(connection, Uuid::nil(), ANY_EPOCH).await;
    if let Err(error) = closed {
        tracing::error!(%error, "cannot close the begins of the other gates");
    }
    if !database.begins_are_closed {
        return Err(LedgerError::damaged("?", &format!("{FORGED_SENTENCE}; {REMEDY}")));
    }
    tracing::error!("{FORGED_SENTENCE}; starting while begins are closed; {REMEDY}");
    let epoch = files.newest_epoch();
    Ok(KnownBefore { epoch, has_lost: true, ..KnownBefore::default() })
}

/// What the comparison needs of the database.
struct DatabaseState {
    /// [`FORGED`] if its seal is wrong.
    epoch: i64,
    begins_are_closed: bool,
    /// The time in milliseconds; none if it differs from the one of this machine.
    now: Option<i64>,
    /// The processes that nobody has fenced.
    alive: HashSet<Uuid>,
}

impl DatabaseState {
    async fn read(
        connection: &mut PgConnection,
        seals: &EpochSeals,
        clock: &Clock,
    ) -> Result<DatabaseState, sqlx::Error> {
        let state = AssertSqlSafe(format!("SELECT {EPOCH}, {ARE_CLOSED}, {DATABASE_NOW}"));
        let sent = clock.machine_now();
        let row = sqlx::query(state).persistent(false).fetch_one(&mut *connection).await?;
        let answered = clock.machine_now();
        let alive = sqlx::query_scalar("SELECT process FROM members WHERE fenced IS NULL");
        let alive: Vec<Uuid> = alive.persistent(false).fetch_all(connection).await?;
        let now: i64 = row.try_get(2)?;
        let database = Timestamp::from_millisecond(now).unwrap_or(Timestamp::MIN);
        let difference = ClockDifference::between(sent, database, answered);
        Ok(DatabaseState {
            epoch: seals.read_row(row.try_get(0)?),
            begins_are_closed: row.try_get(1)?,
            now: (!difference.is_too_large()).then_some(now),
            alive: alive.into_iter().collect(),
        })
    }
}

/// A file that names what the database lacks.
struct Witness {
    path: PathBuf,
    process: Uuid,
}

struct EarlierFiles {
    heads: Vec<HeadsFile>,
    renewals: Vec<StoredRenewals>,
}

impl EarlierFiles {
    fn newest_epoch(&self) -> i64 {
        let epochs = self.heads.iter().map(|file| file.epoch);
        epochs.chain(self.renewals.iter().map(|file| file.epoch)).max().unwrap_or_default()
    }

    /// Returns a file that names what the database lacks. Files of older epochs name what an
    /// operator has settled.
    async fn witness(
        &self,
        connection: &mut PgConnection,
        database: &DatabaseState,
    ) -> Result<Option<Witness>, sqlx::Error> {
        let current = || self.heads.iter().filter(|file| file.epoch == database.epoch);
        let missing = head_files::missing(connection, current()).await?;
        let missing: HashSet<Uuid> = missing.into_iter().map(|(_, chain)| chain).collect();
        let newer = self.heads.iter().filter(|file| file.epoch > database.epoch);
        if let Some(file) =
            newer.chain(current().filter(|file| missing.contains(&file.chain))).next()
        {
            return Ok(Some(Witness { path: file.path.clone(), process: file.chain }));
        }
        for file in &self.renewals {
            let has_lost = match file.epoch == database.epoch {
                true => has_lost(connection, &file.seen, database.now).await?,
                false => file.epoch > database.epoch,
            };
            if has_lost {
                return Ok(Some(Witness { path: file.path.clone(), process: file.process }));
            }
        }
        Ok(None)
    }

    /// Returns the confirmed heads that are no longer needed, as those written before `oldest`.
    fn old_heads(&self, database: &DatabaseState, oldest: Timestamp) -> Vec<PathBuf> {
        let mut ended: Vec<&HeadsFile> =
            self.heads.iter().filter(|file| !database.alive.contains(&file.chain)).collect();
        ended.sort_unstable_by_key(|file| Reverse(file.written));
        let is_old = |(index, file): &(usize, &HeadsFile)| {
            *index >= MAX_HEADS_FILES || file.epoch < database.epoch || file.written < oldest
        };
        ended.into_iter().enumerate().filter(is_old).map(|(_, file)| file.path.clone()).collect()
    }

    /// Returns what the process that starts takes over.
    fn known(self, database: &DatabaseState) -> KnownBefore {
        let mut seen = SeenRenewals::default();
        for file in self.renewals.iter().filter(|file| file.epoch == database.epoch) {
            file.seen.iter().for_each(|(member, of_member)| seen.merge(member, of_member));
        }
        let ended = self.renewals.into_iter();
        let ended = ended.filter(|file| !database.alive.contains(&file.process));
        let superseded = ended.map(|file| file.path).collect();
        KnownBefore { epoch: database.epoch, seen, has_lost: false, superseded }
    }
}

/// Returns whether the members have fewer renewals than were seen.
async fn has_lost(
    connection: &mut PgConnection,
    seen: &SeenRenewals,
    now: Option<i64>,
) -> Result<bool, sqlx::Error> {
    let rows = sqlx::query_as("SELECT member, renewals FROM members WHERE member = ANY($1)");
    let rows: Vec<(Uuid, i64)> =
        rows.bind(seen.members()).persistent(false).fetch_all(connection).await?;
    let rows: Vec<Member> =
        rows.into_iter().map(|(id, renewals)| Member { id, renewals }).collect();
    Ok(seen.lost(&rows, now).is_some())
}
