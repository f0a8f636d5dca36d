//! Where all cores are busy, people who look at the console wait, and readers do not. Nothing that
//! others wait for has the low priority of their pages: no connection of the ledger, for one.
#![cfg(target_os = "linux")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use http::StatusCode;

use crate::support::Scene;
use crate::support::console::Browser;
use crate::support::scene::Setting;

const LOOKS: usize = 2;

/// Returns the nice values of the threads of a process, by name. Threads may end meanwhile.
fn priorities(process: u32) -> BTreeMap<String, BTreeSet<i32>> {
    let threads = fs::read_dir(Path::new("/proc").join(process.to_string()).join("task")).unwrap();
    let mut priorities = BTreeMap::<_, BTreeSet<_>>::new();
    for thread in threads.filter_map(|thread| Some(thread.ok()?.path())) {
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        let Ok(stat) = fs::read_to_string(thread.join("stat")) else { continue };
        // The 19th field of proc_pid_stat(5); the name, in parentheses, is the second.
        let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap();
        priorities.entry(name.trim().to_owned()).or_default().insert(nice.parse().unwrap());
    }
    priorities
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_for_the_console_give_way_and_no_others_do() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    let gate = scene.spawn_gate().await;
    let mut browser = Browser::sign_in(&scene).await;
    browser.post("/purpose", &[("purpose", "a test"), ("next", "/")]).await;
    // Looks at the same time, which use all connections of the ledger.
    let looks = ["/", "/library", "/trail", "/now", "/problems"].repeat(LOOKS).into_iter();
    let looks = looks.map(async |path| {
        let (client, base) = (browser.client.clone(), browser.base.clone());
        let seen = Browser { client, base, cookies: browser.cookies.clone() }.get(path).await;
        assert_eq!(seen.status, StatusCode::OK, "{path}");
    });
    futures_util::future::join_all(looks).await;
    let mut priorities = priorities(gate.child.id());
    let low = priorities.remove("low-priority").expect("its threads run");
    let usual: BTreeSet<_> = priorities.values().flatten().copied().collect();
    assert_eq!(usual.len(), 1, "{priorities:?}");
    assert_eq!(low, [10.max(*usual.first().unwrap())].into());
    assert!(priorities.contains_key("sqlx-sqlite-wor"), "{priorities:?}");
    drop(gate);
    scene.end().await;
}
