//! The demo's titles, and the small storage that serves them to the gate.
//!
//! The demo and whoever wants a gate with something behind it build a [`Collection`] and start a
//! [`Storage`] with it. It calls the vocabulary ([`crate::loan`]) and [`crate::clock`], nothing
//! else of ours. Everything is built in memory and is the same to the byte at each start, so that a
//! validator outlives a restart.

mod audio;
mod epub;
mod file_response;
mod request_log;
mod storage;

use std::fmt;

use aws_lc_rs::digest;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use zip::result::ZipError;

use crate::loan::{Isbn, NameError};

pub use storage::{Running, Storage};

/// The cover of the first book.
const COVER: &[u8] = include_bytes!("assets/cover.png");

/// An ordinary book.
const LENDING: epub::Book = epub::Book {
    isbn: "9788299999014",
    title: "Boka om lån",
    creator: "Torvald Eikemo",
    prose: include_str!("assets/lending.txt"),
    cover: Some(COVER),
};

/// A book that one borrower at a time may have.
const KEY: epub::Book = epub::Book {
    isbn: "9788299999021",
    title: "Nøkkelen ved fjorden",
    creator: "Solveig Brattli",
    prose: include_str!("assets/key.txt"),
    cover: None,
};

/// The audiobook.
const LIGHTHOUSE: &str = "9788299999038";

/// Why the titles cannot be built; it means a mistake in this module.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An ISBN is none.
    #[error("a sample's ISBN is wrong: {0}")]
    Isbn(#[from] NameError),
    /// An EPUB cannot be written.
    #[error("a sample's EPUB cannot be written: {0}")]
    Epub(#[from] ZipError),
}

/// What sort of title it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// An EPUB.
    Ebook,
    /// An MP3.
    Audiobook,
}

impl Kind {
    /// Its name in texts and tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ebook => "ebook",
            Kind::Audiobook => "audiobook",
        }
    }

    /// What its file is called, at the gate and at the storage.
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

/// One title that may be lent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Title {
    /// Its ISBN.
    pub isbn: Isbn,
    /// What sort of title it is.
    pub kind: Kind,
    /// The path of its file at the gate: `/files/{isbn}/book.epub` or `/files/{isbn}/audio.mp3`.
    pub path: String,
    /// How long its file is.
    pub bytes: u64,
    /// How many may have it at a time.
    pub licences: u32,
}

/// One file as it lies at the storage. Cheap to clone.
#[derive(Clone)]
pub struct File {
    path: String,
    content: Bytes,
    content_type: &'static str,
    sha256: String,
}

impl File {
    fn new(path: String, content: Bytes, content_type: &'static str) -> File {
        let sha256 = HEXLOWER.encode(digest::digest(&digest::SHA256, &content).as_ref());
        File { path, content, content_type, sha256 }
    }

    /// Its path at the storage.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its bytes.
    pub fn content(&self) -> &Bytes {
        &self.content
    }

    /// Its media type.
    pub fn content_type(&self) -> &'static str {
        self.content_type
    }

    /// Its SHA-256, in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Its strong validator.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.sha256)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, {} bytes)", self.path, self.content.len())
    }
}

/// The titles and their files, built. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Collection {
    titles: Vec<Title>,
    files: Vec<File>,
}

impl Collection {
    /// Builds every title.
    ///
    /// # Errors
    /// [`BuildError`], which only a mistake in this module makes.
    pub fn build() -> Result<Collection, BuildError> {
        let mut collection = Collection { titles: Vec::new(), files: Vec::new() };
        collection.add(LENDING.isbn.parse()?, Kind::Ebook, epub::build(&LENDING)?, 100);
        collection.add(KEY.isbn.parse()?, Kind::Ebook, epub::build(&KEY)?, 1);
        collection.add(LIGHTHOUSE.parse()?, Kind::Audiobook, audio::build(), 100);
        let cover = format!("/covers/{}.png", LENDING.isbn);
        let cover = File::new(cover, Bytes::from_static(COVER), "image/png");
        collection.files.push(cover);
        Ok(collection)
    }

    fn add(&mut self, isbn: Isbn, kind: Kind, content: Bytes, licences: u32) {
        let path = format!("/{isbn}/{}", kind.file_name());
        self.titles.push(Title {
            isbn,
            kind,
            path: format!("/files{path}"),
            bytes: content.len() as u64,
            licences,
        });
        self.files.push(File::new(path, content, kind.content_type()));
    }

    /// The titles, by ISBN.
    pub fn titles(&self) -> &[Title] {
        &self.titles
    }

    /// The files at the storage, the cover last.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The file that lies at this path of the storage, as in `/9788299999014/book.epub`.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_titles_are_in_order_and_each_has_its_file() {
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
