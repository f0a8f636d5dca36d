//! One gate of a cluster: a process with a directory of its own, which faults stop and restart.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Mutex;

use loangate::app;
use loangate::clock::Clock;
use loangate::config::Loaded;
use serde_json::Value;

use crate::support::Process;

/// A gate that other tasks may use while a fault kills or pauses it.
#[derive(Debug)]
pub(crate) struct ClusterGate {
    pub(crate) number: usize,
    pub(crate) config: PathBuf,
    state: Mutex<State>,
    /// For the admin listener.
    client: reqwest::Client,
}

#[derive(Debug)]
struct State {
    process: Option<Process>,
    /// A gate in this process instead.
    running: Option<app::Running>,
    base: String,
    admin: String,
}

impl ClusterGate {
    pub(super) async fn start(number: usize, config: PathBuf) -> ClusterGate {
        let process = Process::serve(&config).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        ClusterGate { number, config, state: Mutex::new(State::of(process)), client }
    }

    /// Returns the base URL of the public listener. A restart changes it.
    pub(crate) fn base(&self) -> String {
        self.state.lock().unwrap().base.clone()
    }

    /// Sends SIGKILL, which a paused process obeys too.
    pub(crate) fn kill(&self) {
        if let Some(mut process) = self.state.lock().unwrap().process.take() {
            process.kill();
        }
    }

    /// Starts the gate again after [`ClusterGate::kill`], on other ports.
    pub(crate) async fn restart(&self) {
        let state = State::of(Process::serve(&self.config).await);
        *self.state.lock().unwrap() = state;
    }

    /// Suspends the process with SIGSTOP. Its connections stay open and stall.
    pub(crate) fn pause(&self) {
        self.with_process(Process::pause);
    }

    /// Continues a paused process.
    pub(crate) fn resume(&self) {
        self.with_process(Process::resume);
    }

    pub(crate) fn runs(&self) -> bool {
        self.state.lock().unwrap().process.as_mut().is_some_and(Process::runs)
    }

    /// Ends the process as an operator does.
    pub(super) async fn terminate(&self) {
        let (process, running) = {
            let mut state = self.state.lock().unwrap();
            (state.process.take(), state.running.take())
        };
        if let Some(mut process) = process {
            process.terminate();
            assert!(process.exit().await.success(), "gate {} failed to stop", self.number);
        }
        if let Some(running) = running {
            running.stop().await;
        }
    }

    /// Waits until the process ends, without a signal. Returns its status and its log.
    pub(crate) async fn exit(&self) -> (ExitStatus, String) {
        let process = self.state.lock().unwrap().process.take();
        let mut process = process.expect("the gate is a process");
        let status = process.exit().await;
        (status, std::fs::read_to_string(&process.log).unwrap())
    }

    /// Aborts the gate in the test process, as `loangate serve` does after a move of its ledger.
    pub(crate) async fn abort(&self) {
        let running = self.state.lock().unwrap().running.take();
        running.expect("the gate is in this process").abort().await;
    }

    /// Stops the process, and starts a gate with this configuration in the test process. It may
    /// have settings that no file has.
    pub(crate) async fn replace(&self, loaded: Loaded) {
        self.terminate().await;
        let running = app::start(&self.config, loaded, Clock::system()).await.unwrap();
        let (base, admin) =
            (format!("https://{}", running.public.first()), running.admin_url.clone());
        let state = State { process: None, running: Some(running), base, admin };
        *self.state.lock().unwrap() = state;
    }

    fn with_process(&self, action: impl FnOnce(&Process)) {
        if let Some(process) = &self.state.lock().unwrap().process {
            action(process);
        }
    }

    /// Returns the response of `/readyz`.
    pub(crate) async fn readiness(&self) -> String {
        let url = format!("{}/readyz", self.state.lock().unwrap().admin);
        self.client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Returns a sum of the gate's metrics, as [`metric`](crate::support::metric) does.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.admin("/metrics").await.unwrap().text().await.unwrap();
        crate::support::metric(&text, name, labels)
    }

    /// Returns the loans of the ledger that match a query such as `&state=ending`.
    pub(super) async fn loans(&self, query: &str) -> Option<Vec<Value>> {
        let (mut loans, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/v1/loans?limit=500{query}{cursor}");
            let page: Value = self.admin(&path).await.ok()?.json().await.ok()?;
            loans.extend(page["loans"].as_array()?.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Some(loans),
            }
        }
    }

    /// Requests a path of the admin listener, with the token.
    pub(crate) async fn admin(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        let request = self.client.get(format!("{}{path}", self.admin_url()));
        request.bearer_auth(self.token()).send().await?.error_for_status()
    }

    /// Sends a POST without a body to the admin listener.
    pub(crate) async fn post(&self, path: &str) {
        let request = self.client.post(format!("{}{path}", self.admin_url()));
        request.bearer_auth(self.token()).send().await.unwrap().error_for_status().unwrap();
    }

    /// Returns the URL of the admin listener. A restart changes it.
    pub(crate) fn admin_url(&self) -> String {
        self.state.lock().unwrap().admin.clone()
    }

    fn token(&self) -> String {
        let token = self.config.with_file_name("../certs/admin.token");
        std::fs::read_to_string(token).unwrap()
    }
}

impl State {
    fn of(process: Process) -> State {
        let (base, admin) = (process.ready_field("base_url"), process.ready_field("admin_url"));
        State { process: Some(process), running: None, base, admin }
    }
}
