//! The manifests for Kubernetes: their schemas, and that their parts agree with each other and with
//! the gate.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::external_program::{installed, output_text};
use crate::support::{initialised, program};

const MANIFESTS: &str = "deploy/kubernetes/loangate.yaml";
const PACKAGES: &str = "target/kubernetes-validate";

/// Runs Python with the packages of the test.
fn python(arguments: &[&str]) -> Output {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", PACKAGES).current_dir(env!("CARGO_MANIFEST_DIR"));
    python.args(arguments).output().unwrap()
}

fn is_installed() -> bool {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGES).join("kubernetes_validate");
    let install = format!("pip install --target {PACKAGES} kubernetes-validate");
    installed(&package.join("__init__.py"), &install) && program("python3", "python3").is_some()
}

/// Returns the manifests as JSON.
fn manifests() -> Vec<Value> {
    let script = "import json, sys, yaml\n\
                  print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let output = python(&["-c", script, MANIFESTS]);
    assert!(output.status.success(), "{}", output_text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap()
}

/// Returns the seconds of a key such as `drain = "300s"`.
fn seconds(config: &toml::Table, key: &str) -> u64 {
    let text = config["server"][key].as_str().unwrap();
    text.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn manifests_match_the_schemas() {
    if !is_installed() {
        return;
    }
    let validated = python(&["-m", "kubernetes_validate", "--strict", MANIFESTS]);
    let said = output_text(&validated);
    assert!(validated.status.success(), "{said}");
    let kinds = ["configmap", "deployment", "networkpolicy", "poddisruptionbudget", "service"];
    assert!(kinds.iter().all(|kind| said.contains(&format!("resource {kind}/loangate"))), "{said}");
}

#[test]
fn pods_are_confined_and_have_time_to_drain() {
    if !is_installed() {
        return;
    }
    let manifests = manifests();
    let config = of_kind(&manifests, "ConfigMap")["data"]["loangate.toml"].as_str().unwrap();
    let config: toml::Table = config.parse().unwrap();
    let pod = &of_kind(&manifests, "Deployment")["spec"]["template"]["spec"];
    let drain = seconds(&config, "drain_delay") + seconds(&config, "drain") + 52;
    assert_eq!(pod["terminationGracePeriodSeconds"], drain);
    // Readiness must fail before connections are refused.
    let gate = &pod["containers"][0];
    let readiness = &gate["readinessProbe"];
    let noticed = readiness["periodSeconds"].as_u64().unwrap()
        * readiness["failureThreshold"].as_u64().unwrap();
    assert!(noticed < seconds(&config, "drain_delay"));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(gate["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(gate["securityContext"]["capabilities"]["drop"][0], "ALL");
    let volumes = pod["volumes"].as_array().unwrap();
    let secrets = volumes.iter().filter_map(|volume| volume.get("secret"));
    let modes: Vec<_> = secrets.map(|secret| &secret["defaultMode"]).collect();
    assert_eq!(modes, [0o440, 0o440]);
    let ports = gate["ports"].as_array().unwrap();
    for (listener, name) in [("public", "public"), ("admin", "admin")] {
        let address = config["listen"][listener].as_str().unwrap();
        let port = ports.iter().find(|port| port["name"] == name).unwrap();
        assert!(address.ends_with(&format!(":{}", port["containerPort"])), "{address}");
    }
}

#[test]
fn configuration_needs_only_the_mounted_secrets() {
    if !is_installed() {
        return;
    }
    let manifests = manifests();
    let secrets = initialised();
    let certificates = secrets.path().join("certs");
    for (from, to) in [("server.pem", "tls.crt"), ("server.key", "tls.key")] {
        fs::rename(certificates.join(from), certificates.join(to)).unwrap();
    }
    fs::write(certificates.join("ledger.password"), "secret").unwrap();
    let mode = if rustix::process::geteuid().is_root() { 0o440 } else { 0o400 };
    for entry in fs::read_dir(&certificates).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut config =
        of_kind(&manifests, "ConfigMap")["data"]["loangate.toml"].as_str().unwrap().to_owned();
    let pod = &of_kind(&manifests, "Deployment")["spec"]["template"]["spec"];
    for mount in pod["containers"][0]["volumeMounts"].as_array().unwrap() {
        // What is not below a volume stays, and then does not exist.
        let directory = match mount["name"].as_str().unwrap() {
            "secrets" | "tls" => certificates.to_str().unwrap(),
            _ => secrets.path().to_str().unwrap(),
        };
        config = config.replace(mount["mountPath"].as_str().unwrap(), directory);
    }
    let file = secrets.path().join("loangate.toml");
    fs::write(&file, config).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_loangate"));
    let checked = check.args(["check", "--config"]).arg(&file).output().unwrap();
    let said = output_text(&checked);
    assert!(checked.status.success() && !said.contains("warning"), "{said}");
}
