//! A real Prometheus that scrapes a gate, with the rules of `deploy/prometheus`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::Scene;
use super::external_program::{OwnedProcess, direct, free_ports, output_text, run};

/// How long a query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// Prometheus on a loopback port. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Prometheus {
    url: String,
    client: reqwest::Client,
    _process: OwnedProcess,
    _directory: TempDir,
}

/// Returns a file of `deploy`.
pub(crate) fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// Runs promtool, with a text as its standard input. Panics if it finds anything.
pub(crate) async fn promtool(program: &Path, arguments: &[&str], input: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("input");
    std::fs::write(&file, input).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", r#"file=$1; shift; exec "$@" <"$file""#, "sh"]).arg(file).arg(program);
    let output: Output = run(command.args(arguments)).await;
    assert!(output.status.success(), "promtool {arguments:?}: {}", output_text(&output));
}

impl Prometheus {
    /// Starts Prometheus, and waits until it has scraped the gate.
    pub(crate) async fn start(program: &Path, scene: &Scene) -> Prometheus {
        let directory = tempfile::tempdir().unwrap();
        let admin = scene.admin.trim_start_matches("http://");
        let token = scene.dir.path().join("certs/admin.token");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{}, {}]\n\
             scrape_configs:\n\
             - job_name: loangate\n  \
               authorization: {{ credentials_file: {} }}\n  \
               static_configs: [{{ targets: [\"{admin}\"] }}]\n",
            deployed("prometheus/alerts.yml").display(),
            deployed("prometheus/recording.yml").display(),
            token.display(),
        );
        let file = directory.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let (address, log) = (
            format!("127.0.0.1:{}", free_ports(1)),
            std::fs::File::create(directory.path().join("log")).unwrap(),
        );
        let mut command = direct(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = OwnedProcess(command.spawn().unwrap());
        let client = reqwest::Client::builder().no_proxy().timeout(QUERY_TIMEOUT).build().unwrap();
        let url = format!("http://{address}");
        let prometheus = Prometheus { url, client, _process: process, _directory: directory };
        let has_scraped = async || {
            let up = prometheus.query("up == 1").await;
            up.is_ok_and(|series| !series.is_empty())
        };
        scene.until("Prometheus has scraped the gate", has_scraped).await;
        prometheus
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let url = reqwest::Url::parse_with_params(&format!("{}{path}", self.url), parameters);
        let answer = self.client.get(url.unwrap()).send().await.map_err(|why| why.to_string())?;
        let answer: Value = answer.json().await.map_err(|why| why.to_string())?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].clone()),
            false => Err(answer["error"].to_string()),
        }
    }

    /// Evaluates an expression now.
    ///
    /// # Errors
    /// What Prometheus says is wrong with it.
    pub(crate) async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.get("/api/v1/query", &[("query", expression)]).await?;
        Ok(data["result"].as_array().unwrap().clone())
    }

    /// Evaluates an expression for each of these times, in seconds since 1970.
    pub(crate) async fn query_range(
        &self,
        expression: &str,
        (from, to): (i64, i64),
        step: u32,
    ) -> Vec<Value> {
        let (from, to, step) = (from.to_string(), to.to_string(), step.to_string());
        let parameters = [("query", expression), ("start", &from), ("end", &to), ("step", &step)];
        let data = self.get("/api/v1/query_range", &parameters).await.unwrap();
        data["result"].as_array().unwrap().clone()
    }

    /// Returns all rules with the results of their last evaluation.
    pub(crate) async fn rules(&self) -> Vec<Value> {
        let data = self.get("/api/v1/rules", &[]).await.unwrap();
        let groups = data["groups"].as_array().unwrap();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }
}
