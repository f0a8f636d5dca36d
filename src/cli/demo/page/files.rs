//! The files of the page, which the program contains.

/// A file of the page.
pub(super) struct PageFile {
    /// The path below `/demo/`.
    pub(super) name: &'static str,
    pub(super) content: &'static [u8],
}

impl PageFile {
    pub(super) fn content_type(&self) -> &'static str {
        match self.name.rsplit_once('.').map_or("", |(_, extension)| extension) {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        }
    }
}

/// The script whose inline style sheet the page's policy allows.
pub(super) const PAGINATOR: &str = include_str!("web/vendor/foliate-js/paginator.js");

macro_rules! page_files {
    ($($name:literal),* $(,)?) => {
        &[$(PageFile { name: $name, content: include_bytes!(concat!("web/", $name)) }),*]
    };
}

pub(super) const FILES: &[PageFile] = page_files![
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "behind.js",
    "book.js",
    "dom.js",
    "gate.js",
    "listen.js",
    "words.js",
    "vendor/foliate-js/LICENSE",
    "vendor/foliate-js/epub.js",
    "vendor/foliate-js/epubcfi.js",
    "vendor/foliate-js/paginator.js",
    "vendor/zip.js/LICENSE",
    "vendor/zip.js/zip.js",
];
