//! What each role may do: one table, which every request passes before its page.
//!
//! A page that the table does not name is for operators.

use axum::Extension;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use http::Method;

use super::failure::Failure;
use super::page::Place;
use super::session::Role;
use super::visit::Visit;

/// What a request is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// The person's own session, and the help.
    Own,
    /// To look at loans, borrowers and requests.
    Look,
    /// To act on a loan.
    Act,
    /// To look at what libraries have lent and paid, without borrowers.
    Library,
    /// To watch what the gates do and what needs a person.
    Watch,
    /// To look at the access trail.
    Trail,
    /// To look at anything else, and to do it.
    Operate,
}

/// Returns whether a role may do this.
pub(super) fn may(role: Role, action: Action) -> bool {
    match action {
        Action::Own | Action::Library => true,
        Action::Look | Action::Act | Action::Watch => {
            matches!(role, Role::Operator | Role::Support)
        }
        Action::Trail => matches!(role, Role::Operator | Role::Auditor),
        Action::Operate => role == Role::Operator,
    }
}

/// Returns what a request to this path is for.
pub(super) fn action_of(method: &Method, path: &str) -> Action {
    let first = path.strip_prefix('/').and_then(|path| path.split('/').next());
    match first.unwrap_or_default() {
        "help" | "purpose" | "sign-out" => Action::Own,
        "loans" | "library" if method == Method::POST => Action::Act,
        "" if path == "/" => Action::Look,
        "find" | "loans" | "why" => Action::Look,
        "library" | "library.csv" | "library.xlsx" => Action::Library,
        "now" | "problems" | "runbook" => Action::Watch,
        "trail" => Action::Trail,
        _ => Action::Operate,
    }
}

/// Lets only requests pass that the person's role allows.
pub(super) async fn check(
    Extension(visit): Extension<Visit>,
    request: Request,
    next: Next,
) -> Response {
    let Some(session) = &visit.session else { return Failure::SignedOut.into_response() };
    let (role, path) = (session.person.role, request.uri().path());
    if may(role, action_of(request.method(), path)) {
        return next.run(request).await;
    }
    match Place::ALL.into_iter().find(|place| place.is_for(role)) {
        Some(place) if path == "/" => Redirect::to(place.path()).into_response(),
        _ => Failure::NotAllowed.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_without_a_row_is_for_operators() {
        for path in ["/nonsense", "/Now", "//loans", "/Loans", "/loansx", "/api/v1"] {
            for method in [Method::GET, Method::POST] {
                assert_eq!(action_of(&method, path), Action::Operate, "{path}");
            }
        }
    }

    #[test]
    fn each_role_has_its_actions() {
        use Action::{Act, Library, Look, Operate, Own, Trail, Watch};
        for (action, support, operator, auditor) in [
            (Own, true, true, true),
            (Look, true, true, false),
            (Act, true, true, false),
            (Library, true, true, true),
            (Watch, true, true, false),
            (Trail, false, true, true),
            (Operate, false, true, false),
        ] {
            let roles = [Role::Support, Role::Operator, Role::Auditor];
            assert_eq!(
                roles.map(|role| may(role, action)),
                [support, operator, auditor],
                "{action:?}"
            );
        }
    }
}
