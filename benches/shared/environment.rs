//! Surroundings of a measured gate, and what the clients need of them.

use crate::shared::load::Client;
use crate::support::{Scene, Setting};

/// All readers of a bench share an address and few connections, with more streams than an app.
const CONFIG: &str = "[log]\nlevel = \"warn\"\n\n[limits]\nconnections = 15000\nexempt_networks = \
                      [\"127.0.0.0/8\"]\n\
                      requests_per_connection = 1000000000\nconnection_age = \"30d\"\n\n[ledger]";

/// Starts a scene for a gate without request logs, in front of this origin. Returns its client.
pub(crate) async fn around(origin: u16) -> (Scene, Client) {
    let url = format!("http://127.0.0.1:{origin}/");
    let config = vec![
        ("[ledger]", CONFIG),
        // A stalled stream occupies a connection to the origin.
        (
            "name = \"files\"",
            "name = \"files\"
connections = 100000",
        ),
    ];
    let setting = Setting { config, origin: Some(url.leak()), ..Setting::default() };
    let scene = Scene::without_gate(setting).await;
    let client = Client::new(&scene.dir.path().join("certs/ca.pem"));
    (scene, client)
}

/// Returns the port of the gate at this address.
pub(crate) fn port_of(base: &str) -> u16 {
    base.rsplit(':').next().unwrap().parse().unwrap()
}
