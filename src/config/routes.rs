//! Reads `[[routes]]`: which paths lead to which files.

use std::path::PathBuf;

use http::HeaderValue;
use toml::de::DeValue;

use super::table::Table;
use super::values::{boolean, one_of, text};
use crate::catalog::{self, Catalog, Disposition, Route, Storage};

pub(super) fn routes(root: &mut Table<'_>, origins: Vec<Storage>) -> catalog::Settings {
    let mut tables = root.tables("routes");
    let routes: Vec<Option<Route>> = tables.iter_mut().map(route).collect();
    if tables.is_empty() && !root.has("routes") {
        let _: Option<()> =
            root.required("routes", "[[routes]] with path, origin and to", |_| Ok(()));
    }
    // The catalog can compare the routes only if all of them are valid.
    if let Some(routes) = routes.into_iter().collect::<Option<Vec<Route>>>() {
        let settings = catalog::Settings { origins, routes };
        for error in Catalog::new(&settings).err().unwrap_or_default() {
            let other = error.other.and_then(|other| tables.get(other)).map(Table::line);
            let other = other.map_or_else(String::new, |line| {
                format!(". The other route starts in line {line}")
            });
            if let Some(table) = tables.get_mut(error.route) {
                table.mistake(error.key, format!("{}{other}", error.sentence));
            }
        }
        tables.into_iter().for_each(Table::finish);
        return settings;
    }
    tables.into_iter().for_each(Table::finish);
    catalog::Settings { origins: Vec::new(), routes: Vec::new() }
}

fn route(table: &mut Table<'_>) -> Option<Route> {
    let path = table.required("path", "path = \"/files/{isbn}/{*file}\"", text);
    let origin = table.required("origin", "origin = \"files\"", text);
    let to = table.required("to", "to = \"{isbn}/{file}\"", text);
    let open = if table.has("open") { table.optional("open", boolean) } else { Some(false) };
    let registration = one_of(&[("on-miss", false), ("explicit", true)]);
    let explicit = table.optional("registration", registration);
    if open == Some(true) && explicit.is_some() {
        table.mistake(
            "registration",
            "an open route registers no loan. Remove it, or write open = false",
        );
    }
    let titles = titles(table);
    let dispositions =
        one_of(&[("attachment", Disposition::Attachment), ("inline", Disposition::Inline)]);
    let disposition = table.optional("disposition", dispositions);
    let content_security_policy = table.optional("content_security_policy", policy);
    let explicit = explicit.unwrap_or(false);
    Some(Route {
        path: path?,
        origin: origin?,
        to: to?,
        open: open?,
        explicit,
        table: titles?,
        disposition,
        content_security_policy,
    })
}

/// Reads the value of a Content-Security-Policy header.
fn policy(value: &DeValue<'_>) -> Result<HeaderValue, String> {
    let text = text(value)?;
    HeaderValue::try_from(&text).map_err(|_| {
        "a header cannot contain these characters. Write one line, like \
         \"sandbox allow-same-origin\""
            .to_owned()
    })
}

/// Returns the file of a route's title table. The inner option is none if the route has no table,
/// the outer one if the table is invalid.
fn titles(route: &mut Table<'_>) -> Option<Option<PathBuf>> {
    if !route.has("title") {
        // Registers the key as known, although it is absent.
        let _ = route.optional_table("title").has("table");
        return Some(None);
    }
    let mut title = route.table("title")?;
    let file = title.path("table", "title = { table = \"titles.csv\" }");
    title.finish();
    file.map(Some)
}
