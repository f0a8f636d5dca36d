//! The texts of the console: one catalogue for each language, with the same members. A missing
//! text does not compile.

mod english;
mod library;
mod names;
mod norwegian;
mod now;
mod oidc;
mod problems;
mod trail;
mod why_fields;

use crate::language::Language;
pub(super) use library::Library;
pub(super) use names::{cause, end_reason, role, state, state_meaning, step};
pub(super) use now::{Now, level, live, now};
pub(super) use oidc::{provider_sign_in, sign_in_error};
pub(super) use problems::{advice, problem_name, problems, severity};
pub(super) use trail::{TrailTexts, access_name, trail_texts};
pub(super) use why_fields::why_fields;

/// All texts of one language.
pub(super) struct Texts {
    pub(super) common: Common,
    pub(super) sign_in: SignIn,
    pub(super) find: Find,
    pub(super) loan: Loan,
    pub(super) actions: Actions,
    pub(super) why: Why,
    pub(super) library: Library,
    pub(super) help: Help,
    pub(super) failure: Failures,
}

/// Texts of the frame around each page.
pub(super) struct Common {
    pub(super) skip: &'static str,
    pub(super) navigation: &'static str,
    pub(super) first_page: &'static str,
    pub(super) find: &'static str,
    pub(super) why: &'static str,
    pub(super) help: &'static str,
    pub(super) sign_out: &'static str,
    pub(super) signed_in_as: &'static str,
    pub(super) theme: &'static str,
    pub(super) light: &'static str,
    pub(super) dark: &'static str,
    pub(super) system: &'static str,
    pub(super) language: &'static str,
    pub(super) times: &'static str,
    pub(super) required: &'static str,
    pub(super) optional: &'static str,
}

/// Texts of the sign-in page, and of the question for a purpose.
pub(super) struct SignIn {
    pub(super) title: &'static str,
    pub(super) lead: &'static str,
    pub(super) token: &'static str,
    pub(super) token_hint: &'static str,
    pub(super) name: &'static str,
    pub(super) name_hint: &'static str,
    pub(super) submit: &'static str,
    pub(super) wrong: &'static str,
    pub(super) signed_out: &'static str,
    pub(super) purpose_title: &'static str,
    pub(super) purpose_lead: &'static str,
    pub(super) purpose: &'static str,
    pub(super) purpose_hint: &'static str,
    pub(super) go_on: &'static str,
}

/// Texts of the search and of lists of loans.
pub(super) struct Find {
    pub(super) title: &'static str,
    pub(super) lead: &'static str,
    pub(super) query: &'static str,
    pub(super) query_hint: &'static str,
    pub(super) library: &'static str,
    pub(super) library_hint: &'static str,
    pub(super) submit: &'static str,
    pub(super) nothing: &'static str,
    pub(super) nothing_hint: &'static str,
    pub(super) borrower_needs_library: &'static str,
    /// The purpose has the text of the search in it.
    pub(super) id_in_purpose: &'static str,
    pub(super) bad_library: &'static str,
    pub(super) loans_of_borrower: &'static str,
    pub(super) loans_of_title: &'static str,
    pub(super) no_loans: &'static str,
    pub(super) no_loans_hint: &'static str,
    pub(super) state: &'static str,
    pub(super) title_column: &'static str,
    pub(super) begun: &'static str,
    pub(super) due_or_ended: &'static str,
    pub(super) borrower: &'static str,
    pub(super) loan: &'static str,
    pub(super) open: &'static str,
    pub(super) older: &'static str,
    pub(super) newest: &'static str,
    pub(super) due: &'static str,
    pub(super) ended: &'static str,
}

/// Texts of the page of a loan.
pub(super) struct Loan {
    pub(super) title: &'static str,
    pub(super) facts: &'static str,
    pub(super) id: &'static str,
    pub(super) bokbasen_id: &'static str,
    pub(super) reference: &'static str,
    pub(super) pseudonym: &'static str,
    pub(super) forgotten: &'static str,
    pub(super) licence: &'static str,
    pub(super) progress: &'static str,
    pub(super) no_progress: &'static str,
    pub(super) due: &'static str,
    pub(super) ended: &'static str,
    pub(super) end_reason: &'static str,
    pub(super) overdue: &'static str,
    pub(super) refused: &'static str,
    pub(super) code: &'static str,
    pub(super) retry_at: &'static str,
    pub(super) bokbasen_says: &'static str,
    pub(super) timeline: &'static str,
    pub(super) delivered: &'static str,
    pub(super) delivered_hint: &'static str,
    pub(super) nothing_delivered: &'static str,
    pub(super) ranges: fn(usize, &str) -> String,
    pub(super) sent: fn(&str) -> String,
    pub(super) files: &'static str,
    pub(super) no_files: &'static str,
    pub(super) all_of_borrower: &'static str,
    pub(super) all_of_title: &'static str,
}

/// Texts of the actions on a loan.
pub(super) struct Actions {
    pub(super) title: &'static str,
    pub(super) none: &'static str,
    pub(super) reason: &'static str,
    pub(super) reason_hint: &'static str,
    pub(super) end: &'static str,
    pub(super) end_hint: &'static str,
    pub(super) link: &'static str,
    pub(super) link_hint: &'static str,
    pub(super) hours: &'static str,
    pub(super) poll: &'static str,
    pub(super) poll_hint: &'static str,
    pub(super) ended: &'static str,
    pub(super) polled: &'static str,
    pub(super) poll_elsewhere: &'static str,
    pub(super) pending: &'static str,
    pub(super) reason_missing: &'static str,
    pub(super) no_link: &'static str,
    pub(super) mark: &'static str,
    pub(super) mark_hint: &'static str,
    pub(super) marked: &'static str,
    pub(super) waits: &'static str,
    pub(super) minted: &'static str,
    pub(super) minted_hint: &'static str,
    pub(super) valid_until: &'static str,
    pub(super) copy: &'static str,
    pub(super) back: &'static str,
}

/// Texts of the explanations of requests.
pub(super) struct Why {
    pub(super) title: &'static str,
    pub(super) lead: &'static str,
    pub(super) by_request: &'static str,
    pub(super) request: &'static str,
    pub(super) request_hint: &'static str,
    pub(super) by_reader: &'static str,
    pub(super) library_hint: &'static str,
    pub(super) borrower: &'static str,
    pub(super) borrower_hint: &'static str,
    pub(super) path: &'static str,
    pub(super) path_hint: &'static str,
    pub(super) method: &'static str,
    pub(super) submit: &'static str,
    pub(super) bad_request_id: &'static str,
    pub(super) unknown_request: &'static str,
    pub(super) bad_borrower: &'static str,
    pub(super) bad_path: &'static str,
    pub(super) loans_api: &'static str,
    pub(super) facts: &'static str,
    pub(super) was_sent: &'static str,
    pub(super) would_be_sent: &'static str,
    pub(super) was_refused: &'static str,
    pub(super) would_be_refused: &'static str,
    pub(super) assumes: &'static str,
    pub(super) begins: &'static str,
    pub(super) steps: &'static str,
    pub(super) advice: &'static str,
    pub(super) for_reader: &'static str,
    pub(super) for_app: &'static str,
    pub(super) for_operator: &'static str,
    pub(super) another: &'static str,
    pub(super) status: &'static str,
    pub(super) problem: &'static str,
    pub(super) reason: &'static str,
    pub(super) at: &'static str,
    pub(super) issued: &'static str,
}

/// Texts of the help page.
pub(super) struct Help {
    pub(super) title: &'static str,
    pub(super) shortcuts: &'static str,
    pub(super) shortcuts_hint: &'static str,
    pub(super) key: &'static str,
    pub(super) does: &'static str,
    pub(super) search_field: &'static str,
    pub(super) turn_off: &'static str,
    pub(super) turn_on: &'static str,
    pub(super) are_off: &'static str,
    pub(super) states: &'static str,
    pub(super) privacy: &'static str,
    pub(super) privacy_text: &'static str,
}

/// The title and the sentence of each failure.
pub(super) struct Failures {
    pub(super) not_found: [&'static str; 2],
    pub(super) forged: [&'static str; 2],
    pub(super) signed_out: [&'static str; 2],
    pub(super) not_allowed: [&'static str; 2],
    pub(super) malformed: [&'static str; 2],
    pub(super) unreadable_address: [&'static str; 2],
    pub(super) busy: [&'static str; 2],
    pub(super) ledger: [&'static str; 2],
    pub(super) trail: [&'static str; 2],
}

/// Returns the texts of a language.
pub(super) fn texts(language: Language) -> &'static Texts {
    match language {
        Language::English => &english::TEXTS,
        Language::Norwegian => &norwegian::TEXTS,
    }
}
