//! What tests share: a gate with everything around it, an origin that misbehaves on request, the
//! built program, and readers' programs.

pub(crate) mod bokbasen;
pub(crate) mod chromium;
pub(crate) mod demo;
pub(crate) mod disk;
pub(crate) mod external_program;
pub(crate) mod frames;
pub(crate) mod multipart;
pub(crate) mod origin;
pub(crate) mod process;
pub(crate) mod raw_client;
pub(crate) mod raw_origin;
pub(crate) mod scene;
pub(crate) mod storage;
pub(crate) mod web_page_server;

pub(crate) use bokbasen::Bokbasen;
pub(crate) use chromium::Chromium;
pub(crate) use demo::Demo;
pub(crate) use disk::SmallDisk;
pub(crate) use external_program::program;
pub(crate) use origin::{File, Origin};
pub(crate) use process::Process;
pub(crate) use raw_origin::{RawOrigin, Reply};
pub(crate) use scene::{LIBRARY, Scene, Setting};
pub(crate) use web_page_server::Pages;

/// Titles that tests lend; the sandbox lends any.
pub(crate) const BOOK: &str = "9788299999014";
pub(crate) const AUDIO: &str = "9788299999038";

/// Reads Prometheus' text: the sum of all series of a name whose labels contain this text.
pub(crate) fn metric(text: &str, name: &str, labels: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(labels))
        .filter(|line| matches!(line.as_bytes().get(name.len()), Some(b'{' | b' ')))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
