//! The checks of a drill: each has a fault, what readers must get, and what the books must have.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::answers::{check_accepted, refusal_of};
use super::books::{end, one_loan};
use super::gate::{DrillReader, StagingGate};
use super::sandbox::StagingSandbox;

/// The smallest file that a stream is still sending when its loan ends: more than the buffers of
/// both machines.
const MIN_FILE: u64 = 16 * 1024 * 1024;
/// How soon a stream must stop after its loan ended.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How late a slow Bokbasen answers, and how far its clock is ahead.
const DELAY_MS: u64 = 1500;
const SKEW_SECONDS: i64 = 60;

type Check = for<'a> fn(
    &'a StagingGate,
    &'a StagingSandbox,
) -> Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// The check that needs the storage to be relayed by the sandbox.
pub(super) const SLOW_STORAGE: &str = "slow storage";

/// All checks, in their order.
pub(super) const ALL: [(&str, Check); 11] = [
    ("a loan and its end", |gate, sandbox| Box::pin(no_fault(gate, sandbox))),
    ("lost answer to a begin", |gate, sandbox| Box::pin(begin_fault(gate, sandbox, "cut_after"))),
    ("lost begin", |gate, sandbox| Box::pin(begin_fault(gate, sandbox, "cut_before"))),
    ("duplicate loan", |gate, sandbox| Box::pin(duplicate(gate, sandbox))),
    ("slow answers", |gate, sandbox| Box::pin(slow(gate, sandbox))),
    (SLOW_STORAGE, |gate, sandbox| Box::pin(slow_storage(gate, sandbox))),
    ("refused loan", |gate, sandbox| Box::pin(refused(gate, sandbox))),
    ("outage", |gate, sandbox| Box::pin(outage(gate, sandbox))),
    ("clock skew", |gate, sandbox| Box::pin(clock_skew(gate, sandbox))),
    ("loan ended while streaming", |gate, sandbox| Box::pin(streaming(gate, sandbox))),
    ("lost answer to an end", |gate, sandbox| Box::pin(lost_end(gate, sandbox))),
];

/// Begins a loan with these faults of the begin, which each happen once.
async fn begin(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    faults: &[Value],
) -> Result<DrillReader, String> {
    let faults: Vec<_> = faults.iter().map(|effect| ("begin", effect.clone())).collect();
    sandbox.fail(gate.isbn, 1, &faults).await?;
    let reader = gate.reader()?;
    gate.until_served(&reader, sandbox).await?;
    Ok(reader)
}

/// Requires that a reader gets this refusal, and no byte of the file.
async fn refuses(gate: &StagingGate, reader: &DrillReader, kind: &str) -> Result<(), String> {
    let (status, document) = refusal_of(gate.get(reader).await?).await?;
    if status.is_success() {
        return Err(format!("a reader was served instead of refused by {kind}"));
    }
    match document.get("type").and_then(Value::as_str) {
        Some(refused) if refused == kind => Ok(()),
        other => Err(format!("a reader was refused by {other:?} instead of {kind}")),
    }
}

async fn no_fault(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[]).await?;
    one_loan(gate, sandbox, &reader).await?;
    end(gate, sandbox, &reader).await?;
    refuses(gate, &reader, "loan-ended").await
}

async fn begin_fault(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    effect: &str,
) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[json!(effect)]).await?;
    one_loan(gate, sandbox, &reader).await
}

/// The lost answer makes the gate search for its begin, and so find two loans.
async fn duplicate(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[json!("duplicate"), json!("cut_after")]).await?;
    one_loan(gate, sandbox, &reader).await
}

async fn slow(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[json!({ "delay": { "ms": DELAY_MS } })]).await?;
    one_loan(gate, sandbox, &reader).await
}

/// A late storage makes a reader wait. One that is later than the gate waits makes it refuse, with
/// a problem document and not with a part of the file, and the reader keeps the one loan.
async fn slow_storage(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let first_byte = gate.first_byte.ok_or("no storage is relayed")?;
    let late = first_byte.min(Duration::from_millis(DELAY_MS)) / 2;
    let reader = begin(gate, sandbox, &[]).await?;
    sandbox.delay_storage(late).await?;
    let began = Instant::now();
    let (status, refusal) = refusal_of(gate.get(&reader).await?).await?;
    if !status.is_success() {
        return Err(format!("a reader was refused while the storage is slow: {status} {refusal}"));
    }
    if began.elapsed() < late {
        return Err("the gate does not read this file through the sandbox's storage".to_owned());
    }
    sandbox.delay_storage(first_byte.saturating_add(late)).await?;
    refuses(gate, &reader, "origin-timeout").await?;
    sandbox.restore().await?;
    gate.until_served(&reader, sandbox).await?;
    one_loan(gate, sandbox, &reader).await
}

async fn refused(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let effect = json!({ "refuse": { "code": "BORROWER_LIMIT" } });
    sandbox.fail(gate.isbn, 1, &[("begin", effect)]).await?;
    let reader = gate.reader()?;
    refuses(gate, &reader, "loan-refused").await
}

async fn outage(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let (with_loan, without) = (begin(gate, sandbox, &[]).await?, gate.reader()?);
    sandbox.set("down", true.into()).await?;
    let (status, _) = refusal_of(gate.get(&with_loan).await?).await?;
    if !status.is_success() {
        return Err(format!("a reader with a loan was refused in an outage: {status}"));
    }
    let (status, refusal) = refusal_of(gate.get(&without).await?).await?;
    if status != StatusCode::SERVICE_UNAVAILABLE {
        return Err(format!("a reader without a loan got {status} in an outage: {refusal}"));
    }
    sandbox.restore().await?;
    gate.until_served(&without, sandbox).await?;
    one_loan(gate, sandbox, &with_loan).await?;
    one_loan(gate, sandbox, &without).await
}

async fn clock_skew(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    sandbox.set("clock_skew_seconds", SKEW_SECONDS.into()).await?;
    let reader = gate.reader()?;
    gate.until_served(&reader, sandbox).await?;
    one_loan(gate, sandbox, &reader).await?;
    end(gate, sandbox, &reader).await
}

async fn streaming(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[]).await?;
    let mut stream = gate.get_whole(&reader).await?;
    let length = stream.content_length().unwrap_or_default();
    if !stream.status().is_success() || length < MIN_FILE {
        return Err(format!(
            "the file has {length} bytes, too few for a stream that its end can stop. Write \
             --path of a file with at least 16 MiB"
        ));
    }
    check_accepted(&reader, sandbox).await?;
    let first = stream.chunk().await.map_err(|error| error.without_url().to_string())?;
    let mut received = first.map_or(0, |bytes| bytes.len() as u64);
    end(gate, sandbox, &reader).await?;
    let rest = async {
        while let Ok(Some(bytes)) = stream.chunk().await {
            received += bytes.len() as u64;
        }
    };
    if timeout(STOP_TIMEOUT, rest).await.is_err() {
        return Err(format!("a stream went on for {STOP_TIMEOUT:?} after its loan ended"));
    }
    if received >= length {
        return Err("the whole file was sent although its loan ended".to_owned());
    }
    refuses(gate, &reader, "loan-ended").await
}

async fn lost_end(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let reader = begin(gate, sandbox, &[]).await?;
    let lost = json!("cut_before");
    sandbox.fail(gate.isbn, 1, &[("return", lost.clone()), ("cancel", lost)]).await?;
    end(gate, sandbox, &reader).await
}
