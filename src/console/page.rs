//! The frame of every page: head, navigation, preferences and footer.

use axum::response::{Html, IntoResponse, Response};
use http::{Method, StatusCode};
use maud::{DOCTYPE, Markup, html};

use super::files::{ICON, SCRIPT, STYLE};
use super::preferences::Theme;
use super::roles::{action_of, may};
use super::session::Role;
use super::text::{now, problems, role};
use super::visit::{TOKEN_FIELD, Visit};
use crate::language::Language;

/// What a page says about itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    /// The title.
    pub(super) title: &'a str,
    /// The status of the response.
    pub(super) status: StatusCode,
    /// The page of the navigation that it belongs to.
    pub(super) place: Option<Place>,
}

impl Default for Page<'_> {
    fn default() -> Self {
        Page { title: "", status: StatusCode::OK, place: None }
    }
}

/// The pages of the navigation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Find,
    Why,
    Library,
    Now,
    Problems,
    Trail,
    Help,
}

impl Place {
    /// All pages, in their order.
    pub(super) const ALL: [Place; 7] = [
        Place::Find,
        Place::Why,
        Place::Library,
        Place::Now,
        Place::Problems,
        Place::Trail,
        Place::Help,
    ];

    /// Returns the path of the page.
    pub(super) fn path(self) -> &'static str {
        match self {
            Place::Find => "/",
            Place::Why => "/why",
            Place::Library => "/library",
            Place::Now => "/now",
            Place::Problems => "/problems",
            Place::Trail => "/trail",
            Place::Help => "/help",
        }
    }

    /// Returns whether a role may open the page.
    pub(super) fn is_for(self, role: Role) -> bool {
        may(role, action_of(&Method::GET, self.path()))
    }

    /// Returns the key that leads to the page.
    pub(super) fn key(self) -> &'static str {
        match self {
            Place::Find => "f",
            Place::Why => "w",
            Place::Library => "l",
            Place::Now => "n",
            Place::Problems => "p",
            Place::Trail => "t",
            Place::Help => "?",
        }
    }

    /// Returns the name of the page.
    pub(super) fn name(self, visit: &Visit) -> &'static str {
        let common = &visit.texts.common;
        match self {
            Place::Find => common.find,
            Place::Why => common.why,
            Place::Library => visit.texts.library.title,
            Place::Now => now(visit.language).title,
            Place::Problems => problems(visit.language).title,
            Place::Trail => visit.trail_texts().title,
            Place::Help => common.help,
        }
    }
}

/// Returns a page with this content.
pub(super) fn page(visit: &Visit, page: &Page<'_>, content: &Markup) -> Response {
    let theme = Some(visit.theme).filter(|theme| *theme != Theme::System).map(Theme::name);
    let keys = (!visit.has_keys).then_some("off");
    let markup = html! {
        (DOCTYPE)
        html lang=(visit.language.tag()) data-theme=[theme] data-keys=[keys] {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (page.title) " · loangate" }
                link rel="stylesheet" href=(STYLE.path());
                link rel="icon" type="image/svg+xml" href=(ICON.path());
                script src=(SCRIPT.path()) defer {}
            }
            body {
                a.skip href="#content" { (visit.texts.common.skip) }
                (header(visit, page.place))
                main #content tabindex="-1" {
                    h1 { (page.title) }
                    (content)
                }
                (footer(visit))
            }
        }
    };
    (page.status, Html(markup.into_string())).into_response()
}

fn header(visit: &Visit, place: Option<Place>) -> Markup {
    let common = &visit.texts.common;
    html! {
        header.top {
            a.brand href="/" { img src=(ICON.path()) alt="" width="28" height="28"; "loangate" }
            @if visit.session.is_some() {
                nav aria-label=(common.navigation) {
                    @for each in Place::ALL.into_iter().filter(|each| visit.may_open(*each)) {
                        a href=(each.path()) data-key=(each.key())
                            aria-current=[(place == Some(each)).then_some("page")] {
                            (each.name(visit))
                            @if each == Place::Problems { (count(visit.problems)) }
                        }
                    }
                }
            }
            @if let Some(session) = &visit.session {
                form.session method="post" action="/sign-out" {
                    (token(visit))
                    span.who {
                        span.hidden { (common.signed_in_as) " " }
                        (session.person.shown) " · " (role(session.person.role, visit.language))
                    }
                    button.quiet { (common.sign_out) }
                }
            }
        }
    }
}

/// Returns the number of problems beside their link.
pub(super) fn count(problems: usize) -> Markup {
    html! {
        span.count data-live="count" {
            @if problems > 0 { " " span.tally { (problems) } }
        }
    }
}

fn footer(visit: &Visit) -> Markup {
    let common = &visit.texts.common;
    let themes = Theme::ALL.map(|theme| match theme {
        Theme::System => (theme, common.system),
        Theme::Light => (theme, common.light),
        Theme::Dark => (theme, common.dark),
    });
    let languages = Language::ALL.map(|language| match language {
        Language::English => (language, "English"),
        Language::Norwegian => (language, "Norsk"),
    });
    html! {
        footer.bottom {
            form method="post" action="/preferences" {
                (token(visit))
                input type="hidden" name="back" value=(visit.here);
                fieldset {
                    legend { (common.language) }
                    @for (language, name) in languages {
                        button.choice name="language" value=(language.tag()) lang=(language.tag())
                            aria-pressed=(pressed(language == visit.language)) { (name) }
                    }
                }
                fieldset {
                    legend { (common.theme) }
                    @for (theme, name) in themes {
                        button.choice name="theme" value=(theme.name())
                            aria-pressed=(pressed(theme == visit.theme)) { (name) }
                    }
                }
            }
            p.hint { (common.times) }
        }
    }
}

fn pressed(is_chosen: bool) -> &'static str {
    if is_chosen { "true" } else { "false" }
}

/// Returns the hidden field with the token of a form.
pub(super) fn token(visit: &Visit) -> Markup {
    html! { input type="hidden" name=(TOKEN_FIELD) value=(visit.secret.form_token()); }
}

/// A labelled field of a form.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Field<'a> {
    /// The name, which is unique on its page unless `id` is given.
    pub(super) name: &'a str,
    /// The id; the name if it is empty.
    pub(super) id: &'a str,
    /// The label.
    pub(super) label: &'a str,
    /// What to write.
    pub(super) hint: &'a str,
    /// The value so far.
    pub(super) value: &'a str,
    /// The type; text if it is empty.
    pub(super) kind: &'a str,
    /// What a browser may fill in; nothing if it is empty.
    pub(super) complete: &'a str,
    /// Whether it must be filled in.
    pub(super) required: bool,
    /// The maximum length.
    pub(super) length: usize,
}

/// Returns a field with its label and its hint.
pub(super) fn field(visit: &Visit, field: &Field<'_>) -> Markup {
    let common = &visit.texts.common;
    let id = if field.id.is_empty() { field.name } else { field.id };
    let hint = format!("{id}-hint");
    let described = (!field.hint.is_empty()).then_some(&hint);
    let mark = if field.required { common.required } else { common.optional };
    let kind = if field.kind.is_empty() { "text" } else { field.kind };
    let complete = if field.complete.is_empty() { "off" } else { field.complete };
    html! {
        div.field {
            label for=(id) {
                (field.label)
                span.mark { " (" (mark) ")" }
            }
            input id=(id) name=(field.name) type=(kind) value=(field.value) autocomplete=(complete)
                maxlength=(field.length) spellcheck="false" autocapitalize="none"
                required[field.required] aria-describedby=[described];
            @if !field.hint.is_empty() { p.hint id=(hint) { (field.hint) } }
        }
    }
}

/// Returns a notice; `kind` is `good`, `bad` or `note`.
pub(super) fn notice(kind: &str, text: &str) -> Markup {
    html! { div class={ "notice " (kind) } role="status" { p { (text) } } }
}
