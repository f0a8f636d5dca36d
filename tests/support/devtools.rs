//! The DevTools protocol of a headless Chromium: drives a page, and sees its console and network.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout};
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Chromium;

/// Timeout for each condition of the page, also on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);
/// Interval at which a condition is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(30);

/// A page of a browser. Dropping it ends the browser.
pub(crate) struct DevTools {
    browser: Chromium,
    pipe: ChildStdin,
    messages: mpsc::UnboundedReceiver<Value>,
    /// What the page reported, in order.
    pub(crate) events: Vec<Value>,
    calls: u64,
    session: Option<String>,
}

impl DevTools {
    /// Attaches to the only page, and reports its console and network from now on.
    pub(super) async fn attach(
        browser: Chromium,
        (pipe, output): (ChildStdin, ChildStdout),
    ) -> DevTools {
        let (sender, messages) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let _ = sender.send(serde_json::from_slice(&message).unwrap());
                message.clear();
            }
        });
        let (events, calls) = (Vec::new(), 0);
        let mut page = DevTools { browser, pipe, messages, events, calls, session: None };
        let deadline = Instant::now() + PATIENCE;
        let target = loop {
            let targets = page.call("Target.getTargets", json!({})).await;
            let targets = targets["targetInfos"].as_array().unwrap();
            if let Some(target) = targets.iter().find(|target| target["type"] == "page") {
                break target["targetId"].clone();
            }
            assert!(Instant::now() < deadline, "no page: {}", page.browser.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        let attached = json!({ "targetId": target, "flatten": true });
        let attached = page.call("Target.attachToTarget", attached).await;
        page.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        page
    }

    /// Calls a method and returns its result. Stores the events that arrive before.
    pub(crate) async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// As [`DevTools::call`], but returns the browser's error.
    async fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.calls += 1;
        let id = self.calls;
        let mut call = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            call["sessionId"] = session.clone().into();
        }
        self.pipe.write_all(format!("{call}\0").as_bytes()).unwrap();
        self.pipe.flush().unwrap();
        loop {
            let message = tokio::time::timeout(PATIENCE, self.messages.recv()).await;
            let Ok(Some(message)) = message else {
                panic!("no answer to {method}; the browser's log: {}", self.browser.log())
            };
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(message["result"].clone()),
                };
            }
            self.events.push(message);
        }
    }

    /// Evaluates an expression, and returns its value.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let evaluated = self.call("Runtime.evaluate", parameters).await;
        assert!(evaluated.get("exceptionDetails").is_none(), "{expression}: {evaluated}");
        evaluated["result"]["value"].clone()
    }

    /// Returns the visible text of a frame; none if the browser has replaced it meanwhile.
    async fn text_of_frame(&mut self, frame: &Value) -> Option<String> {
        let world = json!({ "frameId": frame["frame"]["id"] });
        let world = self.try_call("Page.createIsolatedWorld", world).await.ok()?;
        let text = json!({
            "expression": "document.body?.checkVisibility() ? document.body.innerText : ''",
            "returnByValue": true,
            "contextId": world["executionContextId"],
        });
        let evaluated = self.try_call("Runtime.evaluate", text).await.ok()?;
        evaluated["result"]["value"].as_str().map(str::to_owned)
    }

    /// Waits until an expression is truthy, and returns its value.
    pub(crate) async fn until(&mut self, expression: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.evaluate(expression).await;
            if !matches!(value, Value::Null | Value::Bool(false)) && value != "" && value != 0 {
                return value;
            }
            if Instant::now() > deadline {
                let page = self.evaluate("document.body.innerText").await;
                panic!("{expression} stays {value}; the page: {page}");
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until this element is enabled, and clicks it as a user does.
    pub(crate) async fn click(&mut self, selector: &str) {
        let element = format!("document.querySelector({})", json!(selector));
        self.until(&format!("{element} && !{element}.disabled")).await;
        let click = json!({ "expression": format!("{element}.click()"), "userGesture": true });
        self.call("Runtime.evaluate", click).await;
    }

    /// Waits until a frame inside the page shows text that contains this, and returns all of it.
    pub(crate) async fn text_in_frame(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tree = self.call("Page.getFrameTree", json!({})).await;
            let frames = tree["frameTree"]["childFrames"].as_array().cloned().unwrap_or_default();
            for frame in frames {
                let text = self.text_of_frame(&frame).await;
                if let Some(text) = text.filter(|text| text.contains(wanted)) {
                    return text;
                }
            }
            assert!(Instant::now() < deadline, "no frame shows {wanted}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for an event of this method that fits, also one that arrived before.
    pub(crate) async fn event(&mut self, method: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.events(method).find(|event| fits(event)).cloned();
            if let Some(found) = found {
                return found;
            }
            assert!(Instant::now() < deadline, "no {method}: {:#?}", self.events);
            self.evaluate("0").await; // receives the events until now
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns the parameters of the events of this method, in order.
    pub(crate) fn events(&self, method: &str) -> impl Iterator<Item = &Value> {
        let events = self.events.iter().filter(move |event| event["method"] == method);
        events.map(|event| &event["params"])
    }

    /// Gives the page this size and colour scheme.
    pub(crate) async fn appear(&mut self, (width, height): (u32, u32), scheme: &str) {
        let size = json!({
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": width < 500,
        });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", scheme).await;
    }

    /// Writes a screenshot of what is visible.
    pub(crate) async fn screenshot(&mut self, file: &Path) {
        let format = json!({ "format": "png" });
        let image = self.call("Page.captureScreenshot", format).await;
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let image = BASE64.decode(image["data"].as_str().unwrap().as_bytes()).unwrap();
        std::fs::write(file, image).unwrap();
    }
}
