//! The queries of all stores. Each store implements the same ones with its own SQL.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use jiff::civil::Date;
use uuid::Uuid;

use super::brake::Counted;
use super::change_feed::FeedBarrier;
use super::membership::Membership;
use super::{
    AccessFilter, Bulletin, EndPosition, Ends, Filter, HistoryRow, LedgerError, Pause,
    RecordedAccess, Report, ReportFilter, ReportPosition, ReportState, StoredRequest, TitleCost,
    TitleLoans, UnfoundBegin, postgres, sqlite,
};
use crate::loan::{LibraryId, Loan, LoanId, LoanKey, Reference, Tally};

/// The minimum number of rows that a query reads to replace skipped damaged rows.
pub(super) const REFILL: u32 = 500;

/// The queries of the store in use. Clones share the connections.
#[derive(Clone, Debug)]
pub(super) enum Queries {
    Sqlite(sqlite::Queries),
    Postgres(postgres::Queries),
}

/// The loans whose borrowers one transaction replaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ToForget {
    /// There are none.
    Nothing,
    /// Loans of any library, in a store whose transactions span libraries.
    AnyLibrary,
    /// Loans of this library.
    Library(LibraryId),
}

/// Delegates methods to the store in use.
macro_rules! delegate {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Queries {
            $(pub(super) async fn $name(
                &self,
                $($argument: $type),*
            ) -> Result<$result, LedgerError> {
                match self {
                    Queries::Sqlite(queries) => queries.$name($($argument),*).await,
                    // Boxed: opening a connection is a large future, and queries are in many
                    // others.
                    Queries::Postgres(queries) => Box::pin(queries.$name($($argument),*)).await,
                }
            })*
        }
    };
}

delegate! {
    fn newest(key: &LoanKey) -> Option<Loan>;
    fn last_end(key: &LoanKey) -> Option<Timestamp>;
    fn loan(id: LoanId) -> Option<Loan>;
    fn find(uuid: Uuid) -> Option<Loan>;
    fn loans(ids: &[LoanId]) -> Vec<Loan>;
    fn is_opened(id: LoanId) -> bool;
    fn owner(id: LoanId) -> Option<String>;
    fn by_reference(library: Option<LibraryId>, reference: &Reference) -> Option<Loan>;
    fn by_lending_id(lending_id: &str, except: Option<LoanId>) -> Option<Loan>;
    fn history(id: LoanId) -> Vec<HistoryRow>;
    fn libraries() -> Vec<LibraryId>;
    fn check() -> ();
    fn due(at: Timestamp, limit: u32) -> Vec<Loan>;
    fn count_due(at: Timestamp) -> u64;
    fn next_due(after: Timestamp) -> Option<Timestamp>;
    fn count_accepted() -> u64;
    fn ends_waiting() -> Ends;
    fn ends_after(position: &EndPosition) -> Ends;
    fn count_ends(before: Timestamp) -> (u64, u64);
    fn oldest_end() -> Option<Timestamp>;
    fn undecided(owner: &str) -> Vec<LoanId>;
    fn unfound_begins(after: Timestamp) -> Vec<UnfoundBegin>;
    fn oldest_live(library: LibraryId) -> Option<Timestamp>;
    fn to_forget(before: Timestamp) -> ToForget;
    fn page(filter: &Filter) -> Vec<Loan>;
    fn has_chain_of_loans(library: LibraryId) -> bool;
    fn accesses(filter: &AccessFilter) -> Vec<RecordedAccess>;
    fn delivered(loans: &[LoanId]) -> HashMap<LoanId, BTreeMap<String, Tally>>;
    fn doubts(library: LibraryId, now: Timestamp) -> HashMap<LoanId, Timestamp>;
    fn loans_to_assess(licence_type: &str, after: Uuid, limit: u32) -> (Vec<Loan>, Option<Uuid>);
    fn reports_in_state(
        state: ReportState, after: Uuid, limit: u32
    ) -> (Vec<Report>, Option<Uuid>);
    fn is_process_dead(membership: &dyn Membership, name: &str) -> bool;
    fn reports(filter: &ReportFilter) -> (Vec<Report>, Option<ReportPosition>);
    fn report_of_loan(loan: Uuid) -> Option<Report>;
    fn has_old_requests(now: Timestamp) -> bool;
    fn add_requests(requests: &[StoredRequest]) -> ();
    fn remove_requests(now: Timestamp, limit: u32) -> u64;
    fn request(id: Uuid) -> Option<StoredRequest>;
    fn count_reports() -> Vec<(ReportState, u64)>;
    fn loans_to_examine(library: LibraryId, limit: u32) -> Vec<Loan>;
    fn waits_for_examination(id: LoanId) -> bool;
    fn pauses() -> Vec<Pause>;
    fn loans_by_title(
        library: LibraryId, from: Timestamp, before: Timestamp
    ) -> Vec<TitleLoans>;
    fn costs_by_title(library: LibraryId, date: Date) -> Vec<TitleCost>;
    fn count_begun(
        library: LibraryId, since: Timestamp, counted: Counted, maximum: u32
    ) -> u64;
    fn count_late_reports(before: Timestamp) -> u64;
    fn reconciled() -> Option<Timestamp>;
    fn ended_by_balance(library: Option<LibraryId>, after: Timestamp) -> u64;
}

impl Queries {
    /// Returns the next undecided loans of dead processes. PostgreSQL finds out itself who is dead,
    /// and divides them into pages. Of a file, the first page has all: one process began them.
    pub(super) async fn orphans(
        &self,
        membership: &dyn Membership,
        after: Option<LoanId>,
    ) -> Result<Vec<Loan>, LedgerError> {
        match self {
            Queries::Sqlite(_) if after.is_some() => Ok(Vec::new()),
            Queries::Sqlite(queries) => queries.orphans(|owner| membership.is_dead(owner)).await,
            Queries::Postgres(queries) => queries.orphans(after).await,
        }
    }

    /// Returns a barrier for everything that was committed before this call. Processes on one
    /// SQLite file do not acknowledge what they read, so nothing waits for them.
    pub(super) async fn barrier(&self) -> Result<FeedBarrier, LedgerError> {
        match self {
            Queries::Sqlite(_) => Ok(FeedBarrier::none()),
            Queries::Postgres(queries) => queries.barrier().await.map(FeedBarrier::new),
        }
    }

    /// Publishes a bulletin, and returns those of the other processes. Processes on one SQLite file
    /// have none.
    pub(super) async fn exchange_bulletins(
        &self,
        member: &str,
        own: &str,
    ) -> Result<Vec<Bulletin>, LedgerError> {
        match self {
            Queries::Sqlite(_) => Ok(Vec::new()),
            Queries::Postgres(queries) => queries.exchange_bulletins(member, own).await,
        }
    }

    pub(super) fn damaged_rows(&self) -> usize {
        match self {
            Queries::Sqlite(queries) => queries.damaged_rows(),
            Queries::Postgres(queries) => queries.damaged_rows(),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Queries::Sqlite(queries) => queries.close().await,
            Queries::Postgres(queries) => queries.close().await,
        }
    }

    /// Returns the pool, for tests that occupy its connections.
    #[cfg(test)]
    pub(super) fn pool(&self) -> &sqlx::SqlitePool {
        match self {
            Queries::Sqlite(queries) => queries.pool(),
            Queries::Postgres(_) => panic!("only tests of SQLite occupy connections"),
        }
    }
}
