//! The choice of language, theme and shortcuts, in cookies. It needs no session.

use axum::Extension;
use axum::response::{IntoResponse, Redirect, Response};
use http::header::SET_COOKIE;

use super::cookies::Cookie;
use super::visit::{Form, Visit, local_path};
use crate::language::Language;

/// The colours of the pages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Theme {
    /// As the system of the browser.
    #[default]
    System,
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

impl Theme {
    /// All themes.
    pub(super) const ALL: [Theme; 3] = [Theme::System, Theme::Light, Theme::Dark];

    /// Returns the name in the cookie and in the pages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Theme::System => "system",
            Theme::Light => "light",
            Theme::Dark => "dark",
        }
    }

    /// Returns the theme with this name, or that of the system.
    pub(super) fn of(name: Option<&str>) -> Theme {
        Theme::ALL.into_iter().find(|theme| Some(theme.name()) == name).unwrap_or_default()
    }
}

/// Stores the preferences that a form has, and leads back to its page.
pub(super) async fn set(
    Extension(visit): Extension<Visit>,
    Extension(form): Extension<Form>,
) -> Response {
    let mut response = Redirect::to(local_path(form.field("back"))).into_response();
    let chosen = |name: &str| Some(form.field(name)).filter(|value| !value.is_empty());
    let language = chosen("language").and_then(Language::of_tag);
    let theme = chosen("theme").map(|name| Theme::of(Some(name)).name());
    let keys = chosen("keys").map(|value| if value == "off" { "off" } else { "on" });
    for (cookie, value) in [
        (Cookie::Language, language.map(Language::tag)),
        (Cookie::Theme, theme),
        (Cookie::Keys, keys),
    ] {
        if let Some(field) = value.and_then(|value| cookie.set(value, visit.tls)) {
            response.headers_mut().append(SET_COOKIE, field);
        }
    }
    response
}
