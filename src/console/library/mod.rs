//! The page of a library: what it lends and what that costs, its use of the brake's limits, and the
//! same as tables to download.

mod brake_table;
mod counts;
mod month;
mod page;
mod request;
mod sums;
mod tables;
mod title_table;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{self, State};
use axum::response::{IntoResponse, Redirect, Response};
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderValue;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use tokio::time::timeout;

use super::Console;
use super::address::Address;
use super::failure::Failure;
use super::find::failed;
use super::trail::{To, look, what};
use super::visit::{self, Visit};
pub(super) use counts::Counts;
use month::Month;
use request::{Query, Wanted};
use tables::Form;

/// How long a page waits for a count. It is well below the 50 ms that a page may take.
const PAGE_WAIT: Duration = Duration::from_millis(30);
/// How long a download waits for a count.
const DOWNLOAD_WAIT: Duration = Duration::from_secs(20);
/// How long the availability of the titles of a page is queried, and how many at once.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
const QUERIES_AT_ONCE: usize = 4;

/// Shows a library, or the libraries to choose from.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(extract::Query(query)): Address<extract::Query<Query>>,
) -> Result<Response, Failure> {
    if query.library.is_empty() {
        let libraries = console.counts.libraries().await?;
        return Ok(page::choice(&visit, &libraries, false));
    }
    let now = console.parts.clock.now();
    let Some(wanted) = query.wanted(Month::at(now)) else {
        return Ok(page::choice(&visit, &[], true));
    };
    look(&console, &visit, what::SHOW_LIBRARY, To::of_library(wanted.library)).await?;
    let counting = console.counts.get(wanted.library, wanted.month, PAGE_WAIT);
    let brake = console.parts.ledger.brake();
    let using = console.parts.ledger.brake_use(wanted.library, now);
    let (counted, uses) = tokio::join!(counting, using);
    let shown = page::Shown {
        wanted,
        now: Month::at(now),
        counted: counted?,
        uses: uses.map_err(failed)?,
        mode: brake.mode,
        has_prices: console.parts.has_prices,
        circulation: &console.parts.circulation,
    };
    Ok(page::library(&visit, &shown))
}

/// Sends the titles as CSV.
pub(super) async fn download_csv(
    console: State<Arc<Console>>,
    visit: Extension<Visit>,
    query: Address<extract::Query<Query>>,
) -> Result<Response, Failure> {
    download(console, visit, query, Form::Csv).await
}

/// Sends all tables as a workbook.
pub(super) async fn download_xlsx(
    console: State<Arc<Console>>,
    visit: Extension<Visit>,
    query: Address<extract::Query<Query>>,
) -> Result<Response, Failure> {
    download(console, visit, query, Form::Xlsx).await
}

async fn download(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(extract::Query(query)): Address<extract::Query<Query>>,
    form: Form,
) -> Result<Response, Failure> {
    let wanted = query.wanted(Month::at(console.parts.clock.now())).ok_or(Failure::NotFound)?;
    look(&console, &visit, what::DOWNLOAD_LIBRARY, To::of_library(wanted.library)).await?;
    let counted = console.counts.get(wanted.library, wanted.month, DOWNLOAD_WAIT).await?;
    let counted = counted.ok_or(Failure::Ledger)?;
    // One at a time: a file of many titles takes memory and a processor.
    let turn = timeout(DOWNLOAD_WAIT, console.downloads.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else { return Err(Failure::Busy) };
    let has_prices = console.parts.has_prices;
    let written = tokio::task::spawn_blocking(move || {
        // Held until the end, also if nobody waits for the file any more.
        let _turn = turn;
        form.write(&counted, has_prices)
    });
    let written = written.await;
    let bytes = match written {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            tracing::error!(%error, "the tables of a library were not written");
            return Err(Failure::Ledger);
        }
        Err(_) => return Err(Failure::Ledger),
    };
    let mut response = bytes.into_response();
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    if let Some(disposition) = form.disposition(&wanted) {
        fields.insert(CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// Queries Bokbasen for the availability of the titles of a page, and shows the page again.
pub(super) async fn query_availability(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<visit::Form>,
) -> Result<Response, Failure> {
    let query = Query::of_form(&form);
    let wanted = query.wanted(Month::at(console.parts.clock.now())).ok_or(Failure::NotFound)?;
    look(&console, &visit, what::QUERY_AVAILABILITY, To::of_library(wanted.library)).await?;
    let counted = console.counts.get(wanted.library, wanted.month, DOWNLOAD_WAIT).await?;
    if let Some(counted) = counted {
        let (titles, _) = wanted.titles(&counted.rows);
        let mut isbns: Vec<_> = titles.iter().map(|title| title.isbn).collect();
        isbns.sort_unstable_by_key(|isbn| isbn.number());
        isbns.dedup();
        let Wanted { library, .. } = wanted;
        let circulation = &console.parts.circulation;
        let queries = stream::iter(isbns).for_each_concurrent(QUERIES_AT_ONCE, |isbn| async move {
            // The page says which title has no answer.
            drop(circulation.availability(library, isbn).await);
        });
        // What is answered by then is shown.
        let _ = timeout(QUERY_TIMEOUT, queries).await;
    }
    let path = format!("{}#titles", wanted.path("/library"));
    Ok(Redirect::to(&path).into_response())
}
