//! How long fetched keys need not be fetched again, by the fields of their response (RFC 9111).

use std::time::Duration;

use http::HeaderMap;
use http::header::{AGE, CACHE_CONTROL};

/// The lifetime without Cache-Control.
const DEFAULT: Duration = Duration::from_secs(600);
/// The shortest lifetime: the gate need not fetch more often, since an unknown key makes it fetch.
const MIN: Duration = Duration::from_secs(60);
/// The longest lifetime. It bounds for how long a removed key is used.
const MAX: Duration = Duration::from_secs(86_400);

/// Returns the lifetime of keys in a response with these fields.
pub(super) fn key_lifetime(head: &HeaderMap) -> Duration {
    let mut lifetime: Option<u64> = None;
    let fields = head.get_all(CACHE_CONTROL).iter().filter_map(|field| field.to_str().ok());
    for directive in fields.flat_map(|field| field.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let seconds = match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => Some(0),
            // Digits without a number are too large for one.
            "max-age" => digits(value).map(|digits| digits.parse().unwrap_or(u64::MAX)),
            _ => None,
        };
        lifetime = seconds.map(|new| lifetime.map_or(new, |old| old.min(new))).or(lifetime);
    }
    let Some(lifetime) = lifetime else { return DEFAULT };
    let age = head.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    Duration::from_secs(lifetime.saturating_sub(age)).clamp(MIN, MAX)
}

/// Returns a value that consists of digits, in quotation marks or not.
fn digits(value: &str) -> Option<&str> {
    let digits = value.trim().trim_matches('"');
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_follows_cache_control_within_bounds() {
        for (fields, age, seconds) in [
            (vec![], "", 600),
            (vec!["max-age=3600"], "", 3600),
            (vec!["public, MAX-AGE=\"3600\", must-revalidate"], "", 3600),
            (vec!["max-age=3600, max-age=1200"], "", 1200),
            (vec!["max-age=3600", "no-cache"], "", 60),
            (vec!["no-store"], "", 60),
            (vec!["max-age=0"], "", 60),
            (vec!["max-age=99999999"], "", 86_400),
            (vec!["max-age=99999999999999999999999"], "", 86_400),
            (vec!["max-age=-5"], "", 600),
            (vec!["max-age="], "", 600),
            (vec!["max-age"], "", 600),
            (vec!["s-maxage=5, x-max-age=7"], "", 600),
            (vec!["max-age=3600"], "3000", 600),
            (vec!["max-age=3600"], "4000", 60),
            (vec!["max-age=3600"], "-1", 3600),
        ] {
            let mut head = HeaderMap::new();
            for field in &fields {
                head.append(CACHE_CONTROL, field.parse().unwrap());
            }
            if !age.is_empty() {
                head.insert(AGE, age.parse().unwrap());
            }
            assert_eq!(key_lifetime(&head).as_secs(), seconds, "{fields:?} {age}");
        }
    }
}
