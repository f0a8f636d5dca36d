//! The spending brake: how many loans a library, and one of its borrowers, may begin in an hour and a day.
//!
//! The writing task asks it inside the transaction of an intent, so that the limit holds under any concurrency, over all
//! processes of a ledger and across restarts: what is counted are the loans themselves. A stolen signing key or an app
//! that loops must not empty a budget.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sqlx::SqliteConnection;

use crate::clock;
use crate::loan::LoanKey;
use crate::telemetry::Metrics;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What the brake does.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BrakeMode {
    /// Nothing.
    #[default]
    Off,
    /// Counts and warns, and lets loans be begun.
    Shadow,
    /// Refuses.
    Enforce,
}

impl BrakeMode {
    fn name(self) -> &'static str {
        match self {
            BrakeMode::Off => "off",
            BrakeMode::Shadow => "shadow",
            BrakeMode::Enforce => "enforce",
        }
    }
}

/// The keys of `[brake]`. A limit of 0 is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Brake {
    /// What it does.
    pub mode: BrakeMode,
    /// New loans of a library in an hour.
    pub library_per_hour: u32,
    /// New loans of a library in a day.
    pub library_per_day: u32,
    /// New loans of a borrower in an hour.
    pub borrower_per_hour: u32,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Reached {
    /// Its key in `[brake]`.
    pub(super) limit: &'static str,
    /// When there is room again.
    pub(super) until: Timestamp,
}

const OF_LIBRARY: &str = "SELECT begun FROM loans INDEXED BY loans_begun WHERE library = ? AND begun > ? \
     AND state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected') \
     ORDER BY begun DESC LIMIT 1 OFFSET ?";
const OF_BORROWER: &str = "SELECT begun FROM loans INDEXED BY loans_begun_by WHERE library = ? AND borrower = ? \
     AND begun > ? AND state <> 'refused' AND (end_reason IS NULL OR end_reason <> 'rejected') \
     ORDER BY begun DESC LIMIT 1 OFFSET ?";

impl Brake {
    /// When this loan may be begun, if not now. Shadow counts and warns, and never refuses.
    pub(super) async fn holds(
        &self,
        connection: &mut SqliteConnection,
        key: &LoanKey,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<Option<Timestamp>, sqlx::Error> {
        if self.mode == BrakeMode::Off {
            return Ok(None);
        }
        let Some(reached) = self.reached(connection, key, now).await? else {
            return Ok(None);
        };
        metrics.brake(reached.limit, self.mode.name());
        tracing::warn!(library = %key.library, limit = reached.limit, mode = self.mode.name(), "the spending brake");
        Ok((self.mode == BrakeMode::Enforce).then_some(reached.until))
    }

    /// The limit that has room again last, of those that are reached.
    async fn reached(
        &self,
        connection: &mut SqliteConnection,
        key: &LoanKey,
        now: Timestamp,
    ) -> Result<Option<Reached>, sqlx::Error> {
        let limits = [
            ("library_per_hour", self.library_per_hour, HOUR, false),
            ("library_per_day", self.library_per_day, DAY, false),
            ("borrower_per_hour", self.borrower_per_hour, HOUR, true),
        ];
        let mut last: Option<Reached> = None;
        for (limit, most, window, of_borrower) in limits {
            // Where so many were begun within the window, the oldest of them says when there is room again.
            let Some(before) = most.checked_sub(1) else { continue };
            let since = now.checked_sub(SignedDuration::try_from(window).unwrap_or_default());
            let since = since.unwrap_or(Timestamp::MIN).as_millisecond();
            let query = sqlx::query_scalar(if of_borrower { OF_BORROWER } else { OF_LIBRARY });
            let query = query.bind(key.library.as_str());
            let query = if of_borrower { query.bind(key.borrower.as_bytes().as_slice()) } else { query };
            let query = query.bind(since).bind(i64::from(before));
            let oldest: Option<i64> = query.fetch_optional(&mut *connection).await?;
            let oldest = oldest.and_then(|millis| Timestamp::from_millisecond(millis).ok());
            let reached = oldest.map(|oldest| Reached { limit, until: clock::after(oldest, window) });
            if reached.is_some_and(|reached| last.is_none_or(|last| last.until < reached.until)) {
                last = reached;
            }
        }
        Ok(last)
    }
}
