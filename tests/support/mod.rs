//! Shared test support: a gate with its surroundings, a scriptable origin, the built program, and
//! programs that readers use.

pub(crate) mod acme_server;
pub(crate) mod alerts;
pub(crate) mod bokbasen;
pub(crate) mod chromium;
pub(crate) mod cluster;
#[cfg(feature = "otlp")]
pub(crate) mod collector;
pub(crate) mod console;
pub(crate) mod demo;
pub(crate) mod devtools;
pub(crate) mod disk;
pub(crate) mod external_program;
pub(crate) mod frames;
pub(crate) mod multipart;
pub(crate) mod openid_provider;
pub(crate) mod origin;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod raw_client;
pub(crate) mod raw_origin;
pub(crate) mod scene;
pub(crate) mod storage;
pub(crate) mod systemd_machine;
pub(crate) mod tcp_proxy;
pub(crate) mod web_page_server;

use std::time::Duration;

pub(crate) use bokbasen::Bokbasen;
pub(crate) use chromium::Chromium;
pub(crate) use demo::Demo;
pub(crate) use devtools::DevTools;
pub(crate) use disk::SmallDisk;
pub(crate) use external_program::program;
pub(crate) use origin::{File, Origin};
pub(crate) use postgres::{PgBouncer, Postgres};
pub(crate) use process::Process;
pub(crate) use raw_origin::{RawOrigin, Reply};
pub(crate) use scene::{LIBRARY, Scene, Setting, initialised};
pub(crate) use tcp_proxy::TcpProxy;
pub(crate) use web_page_server::Pages;

/// ISBNs of the titles that tests use. The sandbox lends any title.
pub(crate) const BOOK: &str = "9788299999014";
pub(crate) const AUDIO: &str = "9788299999038";

/// Polls until this holds. Panics after 30 seconds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "timed out waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sums all series of a metric whose labels contain this text, from the Prometheus text format.
pub(crate) fn metric(text: &str, name: &str, labels: &str) -> f64 {
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(labels))
        .filter(|line| matches!(line.as_bytes().get(name.len()), Some(b'{' | b' ')))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
