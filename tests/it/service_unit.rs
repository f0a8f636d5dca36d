//! The systemd unit: what systemd says of it, and what its reload does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::StatusCode;

use crate::support::external_program::{free_ports, output_text, run};
use crate::support::{BOOK, File, Process, Scene, Setting, program};

const PROGRAM: &str = "/usr/bin/loangate";

/// Returns the text of a file of `deploy`.
fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap()
}

#[test]
fn unit_is_valid_and_exposes_little() {
    let Some(analyze) = program("systemd-analyze", "systemd") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loangate.service");
    let reload = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/reload");
    // systemd also checks that the programs exist.
    let unit = deployed("loangate.service")
        .replace(PROGRAM, env!("CARGO_BIN_EXE_loangate"))
        .replace("/usr/libexec/loangate/reload", reload.to_str().unwrap());
    fs::write(&file, unit).unwrap();
    let verified = Command::new(&analyze).args(["verify", "--man=no"]).arg(&file).output().unwrap();
    assert!(verified.status.success() && output_text(&verified).is_empty(), "{verified:?}");

    let mut command = Command::new(&analyze);
    command.args(["security", "--offline=true", "--no-pager"]).arg(&file);
    let text = output_text(&command.output().unwrap());
    let figure = text.split_once("Overall exposure level for loangate.service: ");
    let figure = figure.and_then(|(_, rest)| rest.split_whitespace().next()).unwrap();
    assert!(figure.parse::<f64>().unwrap() <= 1.5, "{text}");
}

/// The processes that run this program.
fn processes(program: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let runs_it = |entry: &fs::DirEntry| {
        let run = fs::read_link(entry.path().join("exe"));
        // A replaced program has another name.
        run.is_ok_and(|run| run.parent() == program.parent())
    };
    let runners = entries.filter(runs_it);
    runners.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A program of the test's own, whose processes are killed in the end.
struct OwnProgram(PathBuf);

impl OwnProgram {
    /// Puts another file in its place, as a package does.
    fn replace(&self) {
        let new = self.0.with_extension("new");
        fs::copy(env!("CARGO_BIN_EXE_loangate"), &new).unwrap();
        fs::rename(new, &self.0).unwrap();
    }
}

impl Drop for OwnProgram {
    fn drop(&mut self) {
        for process in processes(&self.0) {
            let process = rustix::process::Pid::from_raw(process).unwrap();
            let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reload_lets_a_replaced_program_take_over() {
    let port = free_ports(2);
    let scene = Scene::without_gate(Setting::default()).await;
    scene.replace_in_config("public = \"127.0.0.1:0\"", &format!("public = \"127.0.0.1:{port}\""));
    let admin = format!("127.0.0.1:{}", port + 1);
    scene.replace_in_config("admin = \"127.0.0.1:0\"", &format!("admin = \"{admin}\""));
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(3000));
    let (config, directory) = (scene.config_file(), tempfile::tempdir().unwrap());
    fs::create_dir(directory.path().join("bin")).unwrap();
    let own = OwnProgram(directory.path().join("bin/loangate"));
    own.replace();
    let script = directory.path().join("reload");
    let text = deployed("reload")
        .replace(PROGRAM, own.0.to_str().unwrap())
        .replace("/etc/loangate/loangate.toml", config.to_str().unwrap());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let reload = async |process: i32| {
        let output = run(Command::new(&script).arg(process.to_string())).await;
        (output.status.success(), output_text(&output))
    };

    let mut first = Command::new(&own.0);
    first.args(["serve", "--config"]).arg(&config);
    let mut first = Process::start(first, config.with_file_name("serve.log")).await;
    let process = i32::try_from(first.child.id()).unwrap();
    let log = || fs::read_to_string(config.with_file_name("serve.log")).unwrap();
    assert_eq!(reload(process).await, (true, String::new()));
    scene.until("it reloads", async || log().contains("the configuration was reloaded")).await;
    assert_eq!(processes(&own.0), [process], "the same program serves on");

    own.replace();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[tls]", "[tls]\nmistake = 1")).unwrap();
    let (good, said) = reload(process).await;
    assert!(!good && said.contains("tls.mistake") && said.contains("serves on"), "{said}");
    assert_eq!(processes(&own.0), [process], "the old program serves on");

    fs::write(&config, text).unwrap();
    let (good, said) = reload(process).await;
    assert!(good, "{said}");
    assert!(first.exit().await.success());
    let successors = processes(&own.0);
    assert!(successors.len() == 1 && successors != [process], "{successors:?}");
    let url = format!("https://127.0.0.1:{port}/files/{BOOK}/book.epub");
    let request = scene.http1().get(url).bearer_auth(scene.token("kari"));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    drop(own);
    scene.end().await;
}
