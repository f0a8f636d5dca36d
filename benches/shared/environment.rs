//! What is around a gate that a bench measures, and which of it the clients need.

use crate::shared::load::Client;
use crate::support::{Scene, Setting};

/// All readers of a bench have one address and few connections, which carry more than those of any
/// app.
const CONFIG: &str = "[log]\nlevel = \"warn\"\n\n[limits]\nconnections = 15000\nexempt_networks = [\"127.0.0.0/8\"]\n\
                      requests_per_connection = 1000000000\nconnection_age = \"30d\"\n\n[ledger]";

/// A scene for a gate that tells of no request, before the origin at this port; and its clients.
pub(crate) async fn around(origin: u16) -> (Scene, Client) {
    let url = format!("http://127.0.0.1:{origin}/");
    let config = vec![
        ("[ledger]", CONFIG),
        // A stalled stream holds a connection to the origin.
        (
            "name = \"files\"",
            "name = \"files\"
connections = 100000",
        ),
    ];
    let setting = Setting { config, origin: Some(url.leak()), ..Setting::default() };
    let scene = Scene::around(setting).await;
    let client = Client::new(&scene.dir.path().join("certs/ca.pem"));
    (scene, client)
}

/// The port of the gate at this address.
pub(crate) fn port_of(base: &str) -> u16 {
    base.rsplit(':').next().unwrap().parse().unwrap()
}
