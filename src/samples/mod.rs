//! The demo's titles, and the small storage that serves them to the gate.
//!
//! The demo and tests build a [`Collection`] and start a [`Storage`] with it. This module calls
//! only [`crate::loan`] and [`crate::clock`]. It builds everything in memory, with the same bytes
//! at each start, so that validators stay valid after a restart.

mod audio;
mod content;
mod epub;
mod file_response;
mod request_log;
mod storage;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use zip::result::ZipError;

use crate::loan::{IdentifierError, Isbn};
use content::Content;

pub use storage::{Running, Storage};

/// The cover of the first book.
const COVER: &[u8] = include_bytes!("assets/cover.png");

/// A book that many borrowers can have at once.
const LENDING: epub::Book = epub::Book {
    isbn: "9788299999014",
    title: "Boka om lån",
    creator: "Torvald Eikemo",
    prose: include_str!("assets/lending.txt"),
    cover: Some(COVER),
};

/// A book that only one borrower can have at a time.
const KEY: epub::Book = epub::Book {
    isbn: "9788299999021",
    title: "Nøkkelen ved fjorden",
    creator: "Solveig Brattli",
    prose: include_str!("assets/key.txt"),
    cover: None,
};

/// The ISBN of the first chapter as an audiobook, and of the whole audiobook: over 60 MB.
const LIGHTHOUSE: &str = "9788299999038";
const WHOLE_LIGHTHOUSE: &str = "9788299999045";

/// The minimum durations of the two.
const CHAPTER: Duration = Duration::from_secs(36 * 60);
const WHOLE: Duration = Duration::from_secs(140 * 60);

/// The bytes per second of the whole audiobook: 16 times as many as play in a second. A browser
/// would otherwise have minutes of it at once, and its stream would be idle when the loan ends.
const WHOLE_PACE: usize = 128 * 1024;

/// The reason why the titles cannot be built, which is always a bug in this module.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An ISBN is invalid.
    #[error("a sample's ISBN is wrong: {0}")]
    Isbn(#[from] IdentifierError),
    /// An EPUB cannot be written.
    #[error("a sample's EPUB cannot be written: {0}")]
    Epub(#[from] ZipError),
}

/// The format of a title.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// An e-book in EPUB format.
    Ebook,
    /// An audiobook in MP3 format.
    Audiobook,
}

impl Kind {
    /// Returns its name for texts and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ebook => "ebook",
            Kind::Audiobook => "audiobook",
        }
    }

    /// Returns the name of its file, at the gate and at the storage.
    fn file_name(self) -> &'static str {
        match self {
            Kind::Ebook => "book.epub",
            Kind::Audiobook => "audio.mp3",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Kind::Ebook => "application/epub+zip",
            Kind::Audiobook => "audio/mpeg",
        }
    }
}

/// A title that can be lent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Title {
    /// The ISBN of the title.
    pub isbn: Isbn,
    /// What it is called.
    pub name: &'static str,
    /// Who wrote it.
    pub creator: &'static str,
    /// The format of the title.
    pub kind: Kind,
    /// The path of its file at the gate: `/files/{isbn}/book.epub` or `/files/{isbn}/audio.mp3`.
    pub path: String,
    /// The size of its file, in bytes.
    pub bytes: u64,
    /// The number of borrowers who can have it at the same time.
    pub licences: u32,
}

/// A file in the storage. Cheap to clone.
#[derive(Clone)]
pub struct File {
    path: String,
    content: Content,
    content_type: &'static str,
    sha256: String,
}

impl File {
    fn new(path: String, content: Content, content_type: &'static str) -> File {
        let sha256 = content.sha256();
        File { path, content, content_type, sha256 }
    }

    /// Returns its path in the storage.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns its whole content in one buffer.
    pub fn content(&self) -> Bytes {
        self.content.to_bytes()
    }

    /// Returns its media type.
    pub fn content_type(&self) -> &'static str {
        self.content_type
    }

    /// Returns its SHA-256, in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns its strong validator.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.sha256)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, {} bytes)", self.path, self.content.len())
    }
}

/// The titles and their files. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Collection {
    titles: Vec<Title>,
    files: Vec<File>,
}

impl Collection {
    /// Builds every title and its file in memory.
    ///
    /// # Errors
    /// Returns [`BuildError`], which only a bug in this module causes.
    pub fn build() -> Result<Collection, BuildError> {
        let mut collection = Collection { titles: Vec::new(), files: Vec::new() };
        for (book, licences) in [(LENDING, 100), (KEY, 1)] {
            let content = Content::whole(epub::build(&book)?);
            collection.add(
                book.isbn,
                (book.title, book.creator),
                content,
                (Kind::Ebook, licences),
            )?;
        }
        let chapter = audio::build(CHAPTER);
        let whole = audio::build(WHOLE).paced(WHOLE_PACE);
        for (isbn, name, content) in [
            (LIGHTHOUSE, "Fyret på Lyngholmen, første kapittel", chapter),
            (WHOLE_LIGHTHOUSE, "Fyret på Lyngholmen", whole),
        ] {
            collection.add(isbn, (name, "Ragnhild Lyngås"), content, (Kind::Audiobook, 100))?;
        }
        let cover = format!("/covers/{}.png", LENDING.isbn);
        let cover = File::new(cover, Content::whole(Bytes::from_static(COVER)), "image/png");
        collection.files.push(cover);
        Ok(collection)
    }

    fn add(
        &mut self,
        isbn: &str,
        (name, creator): (&'static str, &'static str),
        content: Content,
        (kind, licences): (Kind, u32),
    ) -> Result<(), IdentifierError> {
        let isbn: Isbn = isbn.parse()?;
        let path = format!("/{isbn}/{}", kind.file_name());
        self.titles.push(Title {
            isbn,
            name,
            creator,
            kind,
            path: format!("/files{path}"),
            bytes: content.len() as u64,
            licences,
        });
        self.files.push(File::new(path, content, kind.content_type()));
        Ok(())
    }

    /// Returns the titles, sorted by ISBN.
    pub fn titles(&self) -> &[Title] {
        &self.titles
    }

    /// Returns whether the storage sends the title no faster than for a slow line.
    pub fn is_paced(&self, title: &Title) -> bool {
        let path = title.path.trim_start_matches("/files");
        self.file(path).is_some_and(|file| file.content.is_paced())
    }

    /// Returns the files in the storage, the cover last.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Returns the file at a path of the storage, such as `/9788299999014/book.epub`.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_sorted_and_have_files() {
        let collection = Collection::build().unwrap();
        let listed: Vec<_> = collection
            .titles()
            .iter()
            .map(|title| (title.path.as_str(), title.kind.name(), title.licences))
            .collect();
        let expected = [
            ("/files/9788299999014/book.epub", "ebook", 100),
            ("/files/9788299999021/book.epub", "ebook", 1),
            ("/files/9788299999038/audio.mp3", "audiobook", 100),
            ("/files/9788299999045/audio.mp3", "audiobook", 100),
        ];
        assert_eq!(listed, expected);
        for title in collection.titles() {
            let file = collection.file(title.path.strip_prefix("/files").unwrap()).unwrap();
            assert_eq!(file.content().len() as u64, title.bytes);
        }
        let cover = collection.file("/covers/9788299999014.png").unwrap();
        assert!(cover.content().starts_with(b"\x89PNG"));
        assert!(collection.file("/9788299999014").is_none());
    }
}
