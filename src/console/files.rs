//! The static files of the console. The name of each has a hash of its content, so a browser
//! stores it for good.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

/// The number of digits of the hash in a name.
const HASH_DIGITS: usize = 16;

/// A static file.
#[derive(Debug)]
pub(super) struct StaticFile {
    name: String,
    content_type: &'static str,
    content: &'static str,
}

impl StaticFile {
    fn new(
        name: &str,
        extension: &str,
        content_type: &'static str,
        content: &'static str,
    ) -> StaticFile {
        let hash = HEXLOWER.encode(digest(&SHA256, content.as_bytes()).as_ref());
        let hash = hash.get(..HASH_DIGITS).unwrap_or_default();
        StaticFile { name: format!("{name}-{hash}.{extension}"), content_type, content }
    }

    /// Returns the path of the file.
    pub(super) fn path(&self) -> String {
        format!("/assets/{}", self.name)
    }
}

/// The stylesheet.
pub(super) static STYLE: LazyLock<StaticFile> = LazyLock::new(|| {
    let content = include_str!("assets/console.css");
    StaticFile::new("console", "css", "text/css; charset=utf-8", content)
});

/// The script. Everything works without it.
pub(super) static SCRIPT: LazyLock<StaticFile> = LazyLock::new(|| {
    let content = include_str!("assets/console.js");
    StaticFile::new("console", "js", "text/javascript; charset=utf-8", content)
});

/// The icon of the pages.
pub(super) static ICON: LazyLock<StaticFile> = LazyLock::new(|| {
    StaticFile::new("icon", "svg", "image/svg+xml", include_str!("assets/icon.svg"))
});

/// Serves a file by its name.
pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let files = [&STYLE, &SCRIPT, &ICON];
    match files.into_iter().find(|file| file.name == name) {
        Some(file) => {
            let fields = [
                (CONTENT_TYPE, file.content_type),
                (CACHE_CONTROL, "public, max-age=31536000, immutable"),
            ];
            (fields, file.content).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
