//! Actions on a loan. Each needs a reason and a role that may act, and is recorded before it is
//! done. The gate, circulation and the authenticator do them, as for the admin API.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use maud::{Markup, html};

use super::Console;
use super::address::Address;
use super::done::Done;
use super::failure::Failure;
use super::find::failed;
use super::format::time;
use super::loan_page::find;
use super::page::{Field, Page, Place, field, notice, page, token};
use super::roles::Action;
use super::sign_in::MAX_REASON;
use super::trail::{To, record, what};
use super::visit::{Form, Visit};
use crate::language::is_unprintable;
use crate::loan::{Loan, LoanState};
use crate::problem::Problem;
use crate::reader::Scope;

/// The default lifetime of a link, in hours.
const DEFAULT_HOURS: &str = "8";

/// Returns a reason for the history of a loan; none if it is empty, too long or has control
/// characters or invisible ones, which may reverse how a line of the trail is shown.
pub(crate) fn checked_reason(text: &str) -> Option<String> {
    let text = text.trim();
    let is_valid =
        !text.is_empty() && text.chars().count() <= MAX_REASON && !text.contains(is_unprintable);
    is_valid.then(|| text.to_owned())
}

/// Returns the forms of the actions that the loan's state allows.
pub(super) fn panel(visit: &Visit, loan: &Loan) -> Markup {
    let texts = &visit.texts.actions;
    let (is_undecided, is_open) = (loan.state.is_undecided(), is_accepted(loan));
    let can_end = matches!(loan.state, LoanState::Pending | LoanState::Accepted);
    let can_mark = !is_undecided;
    html! {
        aside.card aria-labelledby="actions" {
            h2 #actions { (texts.title) }
            @if !visit.may(Action::Act) || !(is_undecided || is_open || can_end || can_mark) {
                p.hint { (texts.none) }
            } @else {
                @if is_undecided {
                    (form(visit, loan, "poll", (texts.poll, texts.poll_hint), &html! {}))
                }
                @if is_open {
                    (form(visit, loan, "link", (texts.link, texts.link_hint), &hours(visit)))
                }
                @if can_mark {
                    (form(visit, loan, "balance", (texts.mark, texts.mark_hint), &html! {}))
                }
                @if can_end {
                    (form(visit, loan, "end", (texts.end, texts.end_hint), &html! {}))
                }
            }
        }
    }
}

/// Whether the reader can read under the loan. A link for any other loan would begin a new one.
fn is_accepted(loan: &Loan) -> bool {
    loan.state == LoanState::Accepted && loan.forgotten.is_none()
}

fn form(
    visit: &Visit,
    loan: &Loan,
    action: &str,
    (name, hint): (&str, &str),
    more: &Markup,
) -> Markup {
    let texts = &visit.texts.actions;
    let id = format!("{action}-reason");
    let reason = Field {
        name: "reason",
        id: &id,
        label: texts.reason,
        hint: texts.reason_hint,
        required: true,
        length: MAX_REASON,
        ..Field::default()
    };
    let style = (action == "end").then_some("danger");
    html! {
        details.action {
            summary { (name) }
            form method="post" action={ "/loans/" (loan.id) "/" (action) } {
                (token(visit))
                p { (hint) }
                (field(visit, &reason))
                (more)
                button class=[style] { (name) }
            }
        }
    }
}

fn hours(visit: &Visit) -> Markup {
    html! {
        div.field {
            label for="hours" { (visit.texts.actions.hours) }
            input #hours name="hours" type="number" min="1" max="8760" value=(DEFAULT_HOURS)
                required;
        }
    }
}

/// Returns the loan and the reason of an action, once it is recorded; without a reason, the
/// response.
async fn begin(
    console: &Console,
    visit: &Visit,
    (id, form, what): (&str, &Form, &'static str),
) -> Result<Result<(Loan, String), Response>, Failure> {
    let person = &visit.session()?.person;
    if !visit.may(Action::Act) {
        return Err(Failure::NotAllowed);
    }
    let loan = find(console, id).await?;
    let Some(reason) = checked_reason(form.field("reason")) else {
        return Ok(Err(Done::ReasonMissing.at(&loan)));
    };
    let to = To::new(Some(loan.key.library), loan.id);
    record(console, person, what, to, Some(&reason)).await?;
    Ok(Ok((loan, reason)))
}

/// Ends a loan.
pub(super) async fn end(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let (loan, reason) = match begin(&console, &visit, (&id, &form, what::END_LOAN)).await? {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    let ended = match console.parts.gate.revoke_loan(loan.id, Some(reason)).await {
        Ok(true) => Done::Ended,
        Ok(false) => return Err(Failure::NotFound),
        Err(Problem::LoanPending { .. }) => Done::Pending,
        Err(_) => return Err(Failure::Ledger),
    };
    Ok(ended.at(&loan))
}

/// Queries Bokbasen about an undecided loan.
pub(super) async fn poll(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let loan = match begin(&console, &visit, (&id, &form, what::POLL_LOAN)).await? {
        Ok((loan, _)) => loan,
        Err(response) => return Ok(response),
    };
    let is_driven = console.parts.circulation.poll_now(loan.id);
    Ok(if is_driven { Done::Polled } else { Done::PollElsewhere }.at(&loan))
}

/// Marks a loan, so that the next balance of its library examines it.
pub(super) async fn mark_for_balance(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let begun = begin(&console, &visit, (&id, &form, what::REQUEST_EXAMINATION)).await?;
    let (loan, reason) = match begun {
        Ok(begun) => begun,
        Err(response) => return Ok(response),
    };
    if loan.state.is_undecided() {
        return Ok(Done::Pending.at(&loan));
    }
    let requested = console.parts.ledger.request_examination(loan.id, reason).await;
    requested.map_err(failed)?;
    Ok(Done::Marked.at(&loan))
}

/// Makes a link for the reader of an accepted loan, and shows it. No address has it.
pub(super) async fn link(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Path(id)): Address<Path<String>>,
    Extension(form): Extension<Form>,
) -> Result<Response, Failure> {
    let loan = match begin(&console, &visit, (&id, &form, what::MINT_LINK)).await? {
        Ok((loan, _)) => loan,
        Err(response) => return Ok(response),
    };
    let hours = form.field("hours").parse::<u32>().ok().filter(|hours| *hours > 0);
    let ttl = hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600));
    let (readers, key) = (&console.parts.readers, &loan.key);
    let mint = |ttl| readers.mint_link(key.library, key.borrower, &Scope::Title(key.isbn), ttl);
    let Some((minted, expires)) = ttl.filter(|_| is_accepted(&loan)).and_then(mint) else {
        return Ok(Done::NoLink.at(&loan));
    };
    let below =
        console.parts.requests.catalog().files_of(key.isbn).into_iter().next().unwrap_or_default();
    let url = format!("{}/~{minted}{below}", console.parts.public_base);
    let texts = &visit.texts.actions;
    let body = html! {
        (notice("good", texts.minted_hint))
        div.card {
            div.field {
                label for="minted" { (texts.minted) }
                textarea #minted readonly rows="4" spellcheck="false" { (url) }
            }
            p.hint { (texts.valid_until) " " (time(expires)) }
            p.links {
                button.quiet type="button" data-copy="minted" hidden { (texts.copy) }
                a href={ "/loans/" (loan.id) } { (texts.back) }
            }
        }
    };
    let place = Some(Place::Find);
    Ok(page(&visit, &Page { title: texts.minted, place, ..Page::default() }, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_has_words_and_an_end() {
        assert_eq!(checked_reason(" a case ").as_deref(), Some("a case"));
        for wrong in [
            "",
            "  ",
            "a\nb",
            "a\u{202e}b",
            "a\u{2066}b",
            "a\u{2028}b",
            &"a".repeat(MAX_REASON + 1),
        ] {
            assert!(checked_reason(wrong).is_none(), "{wrong}");
        }
    }
}
