//! The Debian package and the files of the container image: what is in them, and that they run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use http::StatusCode;
use serde_json::Value;

use crate::support::external_program::{installed, output_text, run, system_file};
use crate::support::{BOOK, File, Process, Scene, Setting, initialised, program};

/// The user of the image.
const USER: u32 = 65532;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the output of a command, which must succeed.
pub(super) async fn output_of(command: &mut Command) -> String {
    let output = run(command).await;
    assert!(output.status.success(), "{command:?}: {}", output_text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the programs that package it are here. Prints how to get one that is not.
pub(super) fn can_package() -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let cargo_deb = home.unwrap().join("bin/cargo-deb");
    installed(&cargo_deb, "cargo install --locked cargo-deb")
        && program("dpkg-shlibdeps", "dpkg-dev").is_some()
}

/// Packages the built program in this target directory, and returns the package.
pub(super) async fn package(target: &Path) -> PathBuf {
    let built = target.join("release/loangate");
    fs::create_dir_all(built.parent().unwrap()).unwrap();
    let _ = fs::remove_file(&built);
    // Without debug information, so that compression takes seconds.
    output_of(Command::new("strip").arg("-o").arg(&built).arg(env!("CARGO_BIN_EXE_loangate")))
        .await;
    let mut build = Command::new(root().join("deploy/build-deb"));
    build
        .args(["--no-build", "release", "--fast"])
        .env("CARGO_TARGET_DIR", target)
        .env("SOURCE_DATE_EPOCH", "1767225600");
    PathBuf::from(output_of(&mut build).await.trim())
}

#[tokio::test]
async fn debian_package_is_reproducible_and_runs() {
    if !can_package() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let first = package(&directory.path().join("one")).await;
    let again = package(&directory.path().join("another")).await;
    assert!(fs::read(&first).unwrap() == fs::read(again).unwrap(), "two packages differ");

    let listing = output_of(Command::new("dpkg-deb").arg("-c").arg(&first)).await;
    let files: BTreeMap<&str, &str> = listing
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!((words[1], words[3]), ("0/0", "2026-01-01"), "{line}");
            (words[5], words[0])
        })
        .collect();
    let programs = ["./usr/bin/loangate", "./usr/libexec/loangate/reload"];
    for (file, mode) in &files {
        let expected = match file {
            directory if directory.ends_with('/') => "drwxr-xr-x",
            file if programs.contains(file) => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!(*mode, expected, "{file}");
    }
    for file in [
        "usr/lib/systemd/system/loangate.service",
        "usr/lib/sysusers.d/loangate.conf",
        "usr/share/bash-completion/completions/loangate",
        "usr/share/doc/loangate/copyright",
        "usr/share/doc/loangate/docs/operations.md",
        "usr/share/fish/vendor_completions.d/loangate.fish",
        "usr/share/man/man1/loangate-healthcheck.1.gz",
        "usr/share/zsh/vendor-completions/_loangate",
    ] {
        assert!(files.contains_key(format!("./{file}").as_str()), "{file}: {listing}");
    }

    let (tree, control) = (directory.path().join("tree"), directory.path().join("control"));
    output_of(Command::new("dpkg-deb").arg("-x").arg(&first).arg(&tree)).await;
    output_of(Command::new("dpkg-deb").arg("-e").arg(&first).arg(&control)).await;
    let conffiles = fs::read_to_string(control.join("conffiles")).unwrap();
    assert_eq!(conffiles.trim(), "/etc/loangate/loangate.toml");
    for script in ["postinst", "prerm", "postrm"] {
        assert_eq!(output_of(Command::new("sh").arg("-n").arg(control.join(script))).await, "");
    }
    example_needs_only_secrets(&tree).await;
}

/// The program of the package accepts the example configuration once its secrets exist.
async fn example_needs_only_secrets(tree: &Path) {
    let config = tree.join("etc/loangate/loangate.toml");
    let check = || {
        let mut command = Command::new(tree.join("usr/bin/loangate"));
        command.args(["check", "--config"]).arg(&config);
        command.env("LOANGATE__LEDGER__URL", format!("sqlite:{}/loangate.db", tree.display()));
        // Only root may check port 443.
        command.env("LOANGATE__LISTEN__PUBLIC", "127.0.0.1:8443");
        command
    };
    let missing = run(&mut check()).await;
    let said = output_text(&missing);
    let keys = ["admin.token", "privacy.pseudonym_key", "lending.client_secret"];
    assert!(!missing.status.success() && said.lines().count() == keys.len(), "{said}");
    assert!(keys.iter().all(|key| said.contains(&format!("{key}: the file"))), "{said}");
    let secrets = initialised();
    fs::rename(secrets.path().join("certs"), tree.join("etc/loangate/certs")).unwrap();
    let said = output_of(&mut check()).await;
    assert!(said.contains("is good") && !said.contains("warning"), "{said}");
}

/// Returns a command that runs its arguments in the image: as the user of the image, or as root of
/// a user namespace, with files that cannot be written except the ledger's.
fn in_image(tree: &Path, config: &Path, state: &Path) -> Command {
    let is_root = rustix::process::geteuid().is_root();
    let script = "set -eu; tree=$1 config=$2 state=$3 user=$4; shift 4\n\
                  read_only=remount,bind,ro,nosuid,nodev\n\
                  mount --bind \"$tree\" \"$tree\"\n\
                  mount --bind \"$config\" \"$tree/etc/loangate\"\n\
                  mount -o $read_only \"$tree/etc/loangate\"\n\
                  mount --bind \"$state\" \"$tree/var/lib/loangate\"\n\
                  mount -o $read_only \"$tree\"\n\
                  exec chroot $user \"$tree\" \"$@\"";
    let mut command = Command::new("unshare");
    command.arg("--mount");
    let user = match is_root {
        true => format!("--userspec={USER}:{USER}"),
        false => {
            command.arg("--map-root-user");
            String::new()
        }
    };
    command.args(["sh", "-c", script, "sh"]).args([tree, config, state]).arg(user);
    command
}

/// Gives all files of a directory to the user of the image. Only root can and must.
fn give(directory: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    chown(directory, Some(USER), Some(USER)).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => give(&path),
            false => chown(path, Some(USER), Some(USER)).unwrap(),
        }
    }
}

/// Returns the words of an instruction of the Containerfile, which is a list in JSON.
fn instruction(name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deploy/Containerfile")).unwrap();
    let lines = text.replace("\\\n", " ");
    let line = lines.lines().find(|line| line.starts_with(name)).unwrap();
    serde_json::from_str(line.split_at(line.find('[').unwrap()).1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn image_serves_unprivileged_with_files_that_nobody_can_write() {
    if system_file("/etc/ssl/certs/ca-certificates.crt", "ca-certificates").is_none() {
        return;
    }
    let scene = Scene::without_gate(Setting::default()).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(3000));
    scene.replace_in_config("sqlite:data/loangate.db", "sqlite:/var/lib/loangate/loangate.db");
    let directory = tempfile::tempdir().unwrap();
    let (tree, state) = (directory.path().join("tree"), directory.path().join("state"));
    let mut assemble = Command::new(root().join("deploy/image-tree"));
    output_of(assemble.arg(env!("CARGO_BIN_EXE_loangate")).arg(&tree)).await;
    fs::create_dir(&state).unwrap();
    fs::rename(scene.config_file(), scene.config_file().with_file_name("loangate.toml")).unwrap();
    give(scene.dir.path());
    give(&state);

    let run_in_image = |words: &[String]| {
        let mut command = in_image(&tree, scene.dir.path(), &state);
        command.args(words);
        command
    };
    let (entry, mut words) = (instruction("ENTRYPOINT"), instruction("CMD"));
    words.splice(..0, entry);
    let log = directory.path().join("serve.log");
    let mut gate = Process::start(run_in_image(&words), log.clone()).await;
    let url = format!("{}/files/{BOOK}/book.epub", gate.ready_field("base_url"));
    let response = scene.http1().get(url).bearer_auth(scene.token("kari"));
    let response = response.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(response.bytes().await.unwrap().len(), 3000);

    let status = fs::read_to_string(format!("/proc/{}/status", gate.child.id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    if rustix::process::geteuid().is_root() {
        assert_eq!((field("Uid:"), field("CapEff:")), (USER.to_string(), "0".repeat(16)));
    }
    assert!(state.join("loangate.db").exists());
    // The check of the image asks for the address that the configuration has.
    let admin: Value = gate.ready_field("admin_url").replace("http://", "").into();
    let config = scene.dir.path().join("loangate.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("admin = \"127.0.0.1:0\"", &format!("admin = {admin}"));
    fs::write(&config, text).unwrap();
    let said = output_of(&mut run_in_image(&instruction("HEALTHCHECK"))).await;
    assert!(said.ends_with("responds\n"), "{said}");
    gate.terminate();
    assert!(gate.exit().await.success());
    assert!(!run(&mut run_in_image(&instruction("HEALTHCHECK"))).await.status.success());
    scene.end().await;
}
