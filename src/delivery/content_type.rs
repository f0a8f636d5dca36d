//! Media types by file extension, for storages that label every file octet-stream.
//!
//! Clients depend on the type: a browser saves an EPUB without one, and a player does not play such
//! a playlist.

use http::HeaderValue;

/// Returns the media type for a file's extension; `None` if the extension is unknown.
pub(super) fn by_name(path: &str) -> Option<HeaderValue> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let (_, extension) = name.rsplit_once('.')?;
    let kind = match extension.to_ascii_lowercase().as_str() {
        "epub" => "application/epub+zip",
        "pdf" => "application/pdf",
        "cbz" => "application/vnd.comicbook+zip",
        "mp3" => "audio/mpeg",
        "m4a" | "m4b" | "mp4a" => "audio/mp4",
        "aac" => "audio/aac",
        "oga" | "ogg" | "opus" => "audio/ogg",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "mp4" | "m4s" => "video/mp4",
        "m3u8" => "application/vnd.apple.mpegurl",
        "ts" => "video/mp2t",
        "vtt" => "text/vtt",
        // Readium: packaged web publications and audiobooks, also with LCP protection.
        "webpub" => "application/webpub+zip",
        "audiobook" => "application/audiobook+zip",
        "lcpl" => "application/vnd.readium.lcp.license.v1.0+json",
        "lcpa" | "lcpau" => "application/audiobook+lcp",
        "lcpdf" => "application/pdf+lcp",
        "json" => "application/json",
        "jsonld" => "application/ld+json",
        "opf" => "application/oebps-package+xml",
        "ncx" => "application/x-dtbncx+xml",
        "smil" => "application/smil+xml",
        "xhtml" => "application/xhtml+xml",
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "js" => "text/javascript",
        "txt" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "svg" => "image/svg+xml",
        "otf" => "font/otf",
        "ttf" => "font/ttf",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "zip" => "application/zip",
        _ => return None,
    };
    Some(HeaderValue::from_static(kind))
}

/// Returns whether a type is generic: empty or octet-stream.
pub(super) fn is_generic(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.is_empty()
        || kind.eq_ignore_ascii_case("application/octet-stream")
        || kind.eq_ignore_ascii_case("binary/octet-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_determines_media_type() {
        for (path, kind) in [
            ("9788299999014/Bok.EPUB", Some("application/epub+zip")),
            ("a/b.c/kapittel 1.mp3", Some("audio/mpeg")),
            ("hls/index.m3u8", Some("application/vnd.apple.mpegurl")),
            ("a.m4b", Some("audio/mp4")),
            ("license.lcpl", Some("application/vnd.readium.lcp.license.v1.0+json")),
            ("a.mp3/file", None),
            ("file", None),
            ("file.", None),
            ("file.xyz", None),
        ] {
            assert_eq!(by_name(path).as_ref().map(|kind| kind.to_str().unwrap()), kind, "{path}");
        }
    }

    #[test]
    fn only_generic_types_are_replaced() {
        for (kind, generic) in [
            ("application/octet-stream", true),
            ("Application/Octet-Stream; charset=binary", true),
            ("binary/octet-stream", true),
            ("", true),
            ("audio/x-mpeg", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_generic(&HeaderValue::from_static(kind)), generic, "{kind}");
        }
    }
}
