//! `--release-source`: lets gates use a source again. Its complete copy is then a ledger that was
//! moved back: no gate opens it, so that never two ledgers are used.

use jiff::Timestamp;

use super::exclusive::ExclusiveLedger;
use super::origin;
use super::source::source_mark;
use super::summary::Summary;
use super::{BATCH, CopyError, Deadlines, Keys};
use crate::ledger::StoreSettings;
use crate::ledger::audit::Head;
use crate::ledger::copy_mark::{BEING_COPIED, MOVED, SourceMark, destination_in};

/// Begins the name of the copy in the mark of a destination that was given up.
const RELEASED: &str = "released ";

/// What is known of the destination of a complete copy.
#[derive(Clone, Copy, Debug)]
pub enum CopiedTo<'a> {
    /// It is there.
    Store(&'a StoreSettings),
    /// It does not exist any more, as the operator says.
    Lost,
    /// The operator has not named it.
    Unnamed,
}

/// Removes the marks that copies have left on a source, so that gates may open it. Returns where it
/// was or should have been copied to; none if it has no such mark. A source whose complete copy is
/// lost counts as one that may lack its newest steps.
///
/// # Errors
/// [`CopyError`]. The source is unchanged then.
pub async fn release_source(
    from: &StoreSettings,
    to: CopiedTo<'_>,
    keys: &Keys,
    now: Timestamp,
) -> Result<Option<String>, CopyError> {
    if !ExclusiveLedger::exists(from).await? {
        return Err(CopyError::Refused("--from names no ledger; check its path".to_owned()));
    }
    let opened = ExclusiveLedger::open(from, keys, Deadlines::default());
    let mut source = Box::pin(opened).await?;
    // A change waits for all who write, and they wait for it: not on a ledger that gates use.
    let mut released = None;
    if source.has_source_mark().await? {
        if source.find_meta(MOVED).await?.is_some() {
            Box::pin(give_up(&mut source, from, to, keys)).await?;
        }
        let taken = source.change_meta(async |meta| {
            let (copied, moved) = (meta.take(BEING_COPIED).await?, meta.take(MOVED).await?);
            // Gates may have used the lost destination, so the source is as good as a backup.
            if moved.is_some() && matches!(to, CopiedTo::Lost) {
                meta.assume_lost_steps(now).await?;
            }
            Ok(moved.or(copied))
        });
        released = taken.await?;
    }
    source.close().await;
    Ok(released.map(|value| destination_in(&value)))
}

/// Marks the destination as moved, unless a gate has used it.
async fn give_up(
    source: &mut ExclusiveLedger,
    from: &StoreSettings,
    to: CopiedTo<'_>,
    keys: &Keys,
) -> Result<(), CopyError> {
    let to = match to {
        CopiedTo::Lost => return Ok(()),
        CopiedTo::Store(to) => to,
        CopiedTo::Unnamed => {
            return refuse(
                "the copy of this ledger is complete, so gates may have used it; name it with \
                 --to, or write --destination-is-lost if it does not exist any more",
            );
        }
    };
    if !ExclusiveLedger::exists(to).await? {
        return refuse("--to names no ledger; check it, or write --destination-is-lost");
    }
    let opened = ExclusiveLedger::open(to, keys, Deadlines::default());
    let mut destination = Box::pin(opened).await?;
    // No gate opens a half copied one.
    if destination.mark().await?.is_none() {
        let head = source.extent().await?.head;
        require_alone_copy(&mut destination, &head, keys).await?;
        // Read once: no gate writes to a source that was moved.
        let copied = Summary::read(source, BATCH, &keys.audit).await?;
        require_equal(&mut destination, &copied, keys).await?;
        let mut mark = source_mark("", from);
        mark.copy = format!("{RELEASED}{}", mark.to);
        let mark = mark.to_bytes();
        destination
            .change_meta(async |meta| {
                meta.take(MOVED).await?;
                meta.insert(MOVED, &mark).await
            })
            .await?;
        // A gate may have opened it between the check and the mark. None writes to it any more.
        let mut checked = require_alone_copy(&mut destination, &head, keys).await;
        if checked.is_ok() {
            checked = require_equal(&mut destination, &copied, keys).await;
        }
        if let Err(used) = checked {
            destination.change_meta(async |meta| meta.remove(MOVED, &mark).await).await?;
            return Err(used);
        }
    }
    destination.close().await;
    Ok(())
}

/// Refuses a destination that a gate uses, or that is no copy of the source with this newest link.
async fn require_alone_copy(
    destination: &mut ExclusiveLedger,
    head: &Head,
    keys: &Keys,
) -> Result<(), CopyError> {
    if !destination.is_alone(|_| {}).await? {
        return refuse("a gate has the ledger of --to open; stop all gates, and copy it back");
    }
    let origins = origin::read_origins(&destination.origins().await?, &keys.audit)?;
    if !origins.iter().any(|origin| origin.is_of(head)) {
        return refuse("the ledger of --to is no copy of this one; name the one that is");
    }
    Ok(())
}

/// Refuses a destination whose rows differ from the source: a gate has used it. All rows count,
/// since gates also write what is no step, such as the bytes that were delivered.
async fn require_equal(
    destination: &mut ExclusiveLedger,
    copied: &Summary,
    keys: &Keys,
) -> Result<(), CopyError> {
    if Summary::read(destination, BATCH, &keys.audit).await? != *copied {
        return refuse(
            "gates have used the ledger of --to, which has newer loans or newer data of them; keep \
             it, or copy it to a new file or an empty database",
        );
    }
    Ok(())
}

/// Lets gates use a destination again that was given up, since the source is moved to it again.
pub(super) async fn take_up(destination: &mut ExclusiveLedger) -> Result<(), CopyError> {
    if let Some(value) = destination.find_meta(MOVED).await?
        && serde_json::from_slice(&value)
            .is_ok_and(|SourceMark { copy, .. }| copy.starts_with(RELEASED))
    {
        destination.change_meta(async |meta| meta.remove(MOVED, &value).await).await?;
    }
    Ok(())
}

fn refuse<T>(sentence: &str) -> Result<T, CopyError> {
    Err(CopyError::Refused(sentence.to_owned()))
}
