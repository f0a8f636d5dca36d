//! `loangate sandbox`: Bokbasen's stand-in alone, for an integrator's own tests.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::stop::Signals;
use super::{CliError, say};
use crate::clock::Clock;
use crate::sandbox::{Running, Sandbox, Settings, World};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where it listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// Where its books are kept; without it they are gone when it stops.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one line of JSON when it is ready.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    let world = World { any_library_any_title: true, ..World::default() };
    let settings = Settings { listen: args.listen, dir: args.dir, world, ..Settings::default() };
    let running = Sandbox::start(settings, Clock::system()).await.map_err(CliError::new)?;
    if args.json {
        say(&described(&running).to_string())?;
    } else {
        say(&format!(
            "Bokbasen's stand-in answers at {}. Its books are at {}/sandbox/books.",
            running.url(),
            running.url()
        ))?;
    }
    signals.drain().await;
    running.stop().await;
    Ok(())
}

/// Everything that a client needs. The credentials open nothing but this stand-in.
fn described(running: &Running) -> serde_json::Value {
    let settings = running.settings();
    serde_json::json!({
        "url": running.url(),
        "token_url": running.token_url(),
        "login_url": running.login_url(),
        "client_id": settings.client_id,
        "client_secret": settings.client_secret.expose_secret(),
        "username": settings.username,
        "password": settings.password.expose_secret(),
    })
}
