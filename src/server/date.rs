//! The field Date (RFC 9110 §6.6.1) of responses over HTTP/2. hyper adds it over HTTP/1.1.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

use crate::clock::Clock;

thread_local! {
    /// The last formatted second, and its text.
    static LAST: RefCell<Option<(i64, HeaderValue)>> = const { RefCell::new(None) };
}

/// Returns the field value for the current second.
pub(super) fn now() -> Option<HeaderValue> {
    let second = Clock::system().now().as_second();
    LAST.with_borrow_mut(|last| match last {
        Some((of, text)) if *of == second => Some(text.clone()),
        _ => {
            let text = format(second)?;
            *last = Some((second, text.clone()));
            Some(text)
        }
    })
}

fn format(second: i64) -> Option<HeaderValue> {
    let since = Duration::from_secs(u64::try_from(second).ok()?);
    HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + since)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_has_the_http_format() {
        assert_eq!(format(784_111_777).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(now().unwrap().len(), 29);
    }
}
