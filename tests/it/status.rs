//! `loangate status`: one look at a running gate.

use std::process::Command;

use http::StatusCode;
use serde_json::Value;

use crate::support::external_program::{free_ports, output_text, run};
use crate::support::{BOOK, File, Scene, Setting};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_look_shows_what_a_gate_is_and_does() {
    let mut scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(1000));
    let admin = format!("admin = \"127.0.0.1:{}\"", free_ports(1));
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &admin);
    let gate = scene.spawn_gate().await;
    let request =
        scene.get(&scene.http1(), &format!("/files/{BOOK}/book.epub"), &scene.token("kari"));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let status = async |json: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command.args(["status", "--config"]).arg(scene.config_file()).args(json);
        let output = run(&mut command).await;
        assert!(output.status.success(), "{}", output_text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let screen = status(&[]).await;
    let row = |name: &str| {
        let mut rows = screen.lines().filter(|line| line.split_whitespace().next() == Some(name));
        rows.next().unwrap_or_else(|| panic!("no {name} in\n{screen}")).to_owned()
    };
    assert!(row("gate").contains(&format!("process {}", gate.child.id())), "{screen}");
    assert!(row("listeners").contains(&scene.admin), "{screen}");
    assert!(row("loans").contains("1 open"), "{screen}");
    assert!(row("serving").contains("reading ok, borrowing ok, returning ok"), "{screen}");
    assert!(row("ledger").contains("this gate alone"), "{screen}");
    assert!(row("tls").contains("expires in"), "{screen}");
    let json: Value = serde_json::from_str(&status(&["--json"]).await).unwrap();
    assert_eq!((&json["loans"], &json["gates"]), (&1.into(), &1.into()), "{json}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    drop(gate);
    scene.end().await;
}
