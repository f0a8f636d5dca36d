//! What the books must have: each loan once, and each end.

use serde_json::Value;

use super::gate::{DrillReader, StagingGate};
use super::sandbox::StagingSandbox;

pub(super) fn text<'a>(loan: &'a Value, name: &str) -> &'a str {
    loan.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn is_live(loan: &Value) -> bool {
    matches!(text(loan, "status"), "PENDING" | "ACCEPTED")
}

/// Waits until the sandbox has exactly one live loan of a reader, which is the gate's.
pub(super) async fn one_loan(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    reader: &DrillReader,
) -> Result<(), String> {
    let ours = gate.loans(&reader.borrower).await?;
    let ours: Vec<_> = ours.iter().filter(|loan| text(loan, "state") == "accepted").collect();
    let [ours] = ours.as_slice() else {
        return Err(format!("the gate has {} accepted loans of one reader", ours.len()));
    };
    let booked = sandbox.loans(&reader.borrower).await?;
    let live: Vec<_> = booked.iter().filter(|loan| is_live(loan)).collect();
    match live.as_slice() {
        [live] if text(live, "loanId") == text(ours, "lending_id") => Ok(()),
        [_] => Err("the live loan in the books is another than the gate's".to_owned()),
        _ => Err(format!("the books have {} live loans of one reader, not one", live.len())),
    }
}

/// Ends a reader's loans, and waits until the sandbox and the gate have each end.
pub(super) async fn end(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    reader: &DrillReader,
) -> Result<(), String> {
    gate.end(&reader.borrower).await?;
    until_ended(gate, sandbox, std::slice::from_ref(&reader.borrower)).await
}

async fn until_ended(
    gate: &StagingGate,
    sandbox: &StagingSandbox,
    borrowers: &[String],
) -> Result<(), String> {
    let is_over = |loan: &Value| matches!(text(loan, "state"), "ended" | "refused");
    gate.until("the end of a loan in the gate and at the sandbox", async || {
        for borrower in borrowers {
            let (ours, booked) = (gate.loans(borrower).await?, sandbox.loans(borrower).await?);
            if !ours.iter().all(is_over) || booked.iter().any(is_live) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// Ends all loans of the drill, and compares the sandbox's books with the gate's ledger.
pub(super) async fn balance(gate: &StagingGate, sandbox: &StagingSandbox) -> Result<(), String> {
    let borrowers = gate.borrowers();
    for borrower in &borrowers {
        gate.end(borrower).await?;
    }
    until_ended(gate, sandbox, &borrowers).await?;
    for borrower in &borrowers {
        compare(&gate.loans(borrower).await?, &sandbox.loans(borrower).await?)?;
    }
    Ok(())
}

/// Compares the loans of one borrower in the ledger and in the books.
fn compare(ours: &[Value], booked: &[Value]) -> Result<(), String> {
    for loan in ours {
        let id = text(loan, "lending_id");
        let times = booked.iter().filter(|booked| text(booked, "loanId") == id).count();
        if !id.is_empty() && times != 1 {
            return Err(format!("the books have a loan of the gate {times} times"));
        }
    }
    for loan in booked {
        let reference = text(loan, "reference");
        if !ours.iter().any(|ours| text(ours, "reference") == reference) {
            return Err("the books have a loan that the gate does not know".to_owned());
        }
        if loan.get("accepted").is_some() && loan.get("endReceived").is_none() {
            return Err("the books lack the end of an accepted loan".to_owned());
        }
    }
    Ok(())
}
