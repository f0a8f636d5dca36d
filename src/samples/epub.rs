//! Builds an EPUB 3 with a few chapters in memory.
//!
//! The same book gives the same bytes on every machine. Its times are fixed, and its entries are
//! stored uncompressed, because another deflate version may compress them differently.

use std::fmt::Write as _;
use std::io::{Cursor, Write as _};

use bytes::Bytes;
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// The content of a book.
#[derive(Clone, Copy, Debug)]
pub(super) struct Book {
    pub(super) isbn: &'static str,
    pub(super) title: &'static str,
    pub(super) creator: &'static str,
    /// A line that starts with `# ` opens a chapter. Every other non-empty line is a paragraph.
    pub(super) prose: &'static str,
    /// The cover, as a PNG.
    pub(super) cover: Option<&'static [u8]>,
}

struct Chapter<'a> {
    heading: &'a str,
    paragraphs: Vec<&'a str>,
}

/// The modification time in every book.
const MODIFIED: &str = "2026-01-05T08:00:00Z";

const CONTAINER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
  <rootfiles>
    <rootfile full-path="EPUB/package.opf" media-type="application/oebps-package+xml"/>
  </rootfiles>
</container>
"#;

/// Builds the book's file.
pub(super) fn build(book: &Book) -> ZipResult<Bytes> {
    let chapters = chapters(book.prose);
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::from_date_and_time(2026, 1, 5, 8, 0, 0)?)
        .unix_permissions(0o644);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let mut entry = |name: &str, content: &[u8]| -> ZipResult<()> {
        archive.start_file(name, options)?;
        Ok(archive.write_all(content)?)
    };
    // First and stored, so that a reading system finds it at byte 30 (EPUB 3.3 §4.2.4).
    entry("mimetype", b"application/epub+zip")?;
    entry("META-INF/container.xml", CONTAINER.as_bytes())?;
    entry("EPUB/package.opf", package(book, chapters.len()).as_bytes())?;
    entry("EPUB/nav.xhtml", navigation(&chapters).as_bytes())?;
    for (number, chapter) in (1..).zip(&chapters) {
        let name = format!("EPUB/chapter-{number}.xhtml");
        entry(&name, text_of(chapter).as_bytes())?;
    }
    if let Some(cover) = book.cover {
        entry("EPUB/cover.png", cover)?;
    }
    Ok(Bytes::from(archive.finish()?.into_inner()))
}

fn chapters(prose: &str) -> Vec<Chapter<'_>> {
    let mut chapters: Vec<Chapter<'_>> = Vec::new();
    for line in prose.lines().filter(|line| !line.is_empty()) {
        if let Some(heading) = line.strip_prefix("# ") {
            chapters.push(Chapter { heading, paragraphs: Vec::new() });
        } else if let Some(chapter) = chapters.last_mut() {
            chapter.paragraphs.push(line);
        }
    }
    chapters
}

/// Builds the package document: metadata, manifest and reading order.
fn package(book: &Book, chapters: usize) -> String {
    let (mut manifest, mut spine) = (String::new(), String::new());
    for number in 1..=chapters {
        let _ = write!(
            manifest,
            "\n    <item id=\"chapter-{number}\" href=\"chapter-{number}.xhtml\" \
             media-type=\"application/xhtml+xml\"/>"
        );
        let _ = write!(spine, "\n    <itemref idref=\"chapter-{number}\"/>");
    }
    if book.cover.is_some() {
        manifest.push_str(
            "\n    <item id=\"cover\" href=\"cover.png\" media-type=\"image/png\" \
             properties=\"cover-image\"/>",
        );
    }
    let (isbn, title, creator) = (book.isbn, escaped(book.title), escaped(book.creator));
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="isbn" xml:lang="nb">
  <metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
    <dc:identifier id="isbn">urn:isbn:{isbn}</dc:identifier>
    <dc:title>{title}</dc:title>
    <dc:language>nb</dc:language>
    <dc:creator>{creator}</dc:creator>
    <meta property="dcterms:modified">{MODIFIED}</meta>
  </metadata>
  <manifest>
    <item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>{manifest}
  </manifest>
  <spine>{spine}
  </spine>
</package>
"#
    )
}

/// Builds the table of contents.
fn navigation(chapters: &[Chapter<'_>]) -> String {
    let mut list = String::new();
    for (number, chapter) in (1..).zip(chapters) {
        let heading = escaped(chapter.heading);
        let _ = write!(list, "\n<li><a href=\"chapter-{number}.xhtml\">{heading}</a></li>");
    }
    page(
        "Innhold",
        &format!("<nav epub:type=\"toc\">\n<h1>Innhold</h1>\n<ol>{list}\n</ol>\n</nav>"),
    )
}

fn text_of(chapter: &Chapter<'_>) -> String {
    let mut text = format!("<h1>{}</h1>", escaped(chapter.heading));
    for paragraph in &chapter.paragraphs {
        let _ = write!(text, "\n<p>{}</p>", escaped(paragraph));
    }
    page(chapter.heading, &text)
}

fn page(title: &str, body: &str) -> String {
    let title = escaped(title);
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" lang="nb" xml:lang="nb">
<head>
<title>{title}</title>
</head>
<body>
{body}
</body>
</html>
"#
    )
}

/// Escapes text for use between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use zip::ZipArchive;

    use super::super::{KEY, LENDING};
    use super::*;

    #[test]
    fn builds_are_identical_and_store_the_mimetype_first() {
        for book in [LENDING, KEY] {
            let file = build(&book).unwrap();
            assert_eq!(file, build(&book).unwrap());
            assert_eq!(file[8..10], [0, 0], "stored");
            assert_eq!(file[26..30], [8, 0, 0, 0], "a name of eight bytes and no extra field");
            assert_eq!(&file[30..58], b"mimetypeapplication/epub+zip");
        }
    }

    #[test]
    fn book_contains_its_chapters_and_metadata() {
        for (book, chapters) in [(LENDING, 4), (KEY, 3)] {
            let mut archive = ZipArchive::new(Cursor::new(build(&book).unwrap())).unwrap();
            let found = archive
                .file_names()
                .filter(|name| name.as_ref().unwrap().contains("chapter-"))
                .count();
            assert_eq!(found, chapters);
            assert_eq!(archive.by_name("EPUB/cover.png").is_ok(), book.cover.is_some());
            let mut package = String::new();
            let mut entry = archive.by_name("EPUB/package.opf").unwrap();
            entry.read_to_string(&mut package).unwrap();
            assert!(package.contains(&format!("urn:isbn:{}<", book.isbn)));
            assert!(package.contains(book.title));
        }
    }

    #[test]
    fn text_is_escaped() {
        let book = Book { prose: "# A & B\n\nOne < two", ..KEY };
        let page = text_of(&chapters(book.prose)[0]);
        assert!(page.contains("<h1>A &amp; B</h1>\n<p>One &lt; two</p>"), "{page}");
    }
}
