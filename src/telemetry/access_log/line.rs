//! One line: its values, as JSON or as text.

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::Version;
use jiff::Timestamp;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use super::AccessField;
use crate::loan::Isbn;
use crate::telemetry::{RequestId, StreamEnd, TraceId, Via};

/// What is known of a request whose response has ended. Nothing in it is a secret: no borrower, no
/// token, no path and no query.
#[derive(Clone, Debug)]
pub(in crate::telemetry) struct AccessLine {
    pub(in crate::telemetry) time: Timestamp,
    pub(in crate::telemetry) id: RequestId,
    pub(in crate::telemetry) trace: Option<TraceId>,
    pub(in crate::telemetry) client: Option<IpAddr>,
    pub(in crate::telemetry) method: &'static str,
    pub(in crate::telemetry) version: Version,
    pub(in crate::telemetry) route: Option<Box<str>>,
    pub(in crate::telemetry) isbn: Option<Isbn>,
    pub(in crate::telemetry) status: u16,
    pub(in crate::telemetry) outcome: &'static str,
    pub(in crate::telemetry) via: Via,
    pub(in crate::telemetry) range: Option<Box<str>>,
    pub(in crate::telemetry) bytes: u64,
    pub(in crate::telemetry) resumes: u32,
    pub(in crate::telemetry) end: StreamEnd,
    pub(in crate::telemetry) head: Duration,
    pub(in crate::telemetry) total: Duration,
}

/// The value of a field.
#[derive(Serialize)]
#[serde(untagged)]
enum Value<'l> {
    Number(u64),
    Text(&'l str),
    Made(String),
}

impl AccessLine {
    /// Returns the status of the response.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// Appends the line with these fields and its end. Fields without a value are left out.
    pub(super) fn append(&self, fields: &[AccessField], is_text: bool, out: &mut Vec<u8>) {
        let values = || fields.iter().filter_map(|field| Some((field.name(), self.value(*field)?)));
        if is_text {
            for (position, (name, value)) in values().enumerate() {
                if position > 0 {
                    out.push(b' ');
                }
                append_pair(name, &value, out);
            }
        } else {
            let mut json = serde_json::Serializer::new(&mut *out);
            // Cannot fail: a Vec takes all, and every value is a number or a text.
            let _ = json.serialize_map(None).and_then(|mut map| {
                values().try_for_each(|(name, value)| map.serialize_entry(name, &value))?;
                map.end()
            });
        }
        out.push(b'\n');
    }

    fn value(&self, field: AccessField) -> Option<Value<'_>> {
        Some(match field {
            AccessField::Time => Value::Made(format!("{:.3}", self.time)),
            AccessField::Id => Value::Made(self.id.to_string()),
            AccessField::TraceId => Value::Made(self.trace?.to_string()),
            AccessField::Client => Value::Made(self.client?.to_canonical().to_string()),
            AccessField::Method => Value::Text(self.method),
            AccessField::Version => Value::Made(format!("{:?}", self.version)),
            AccessField::Route => Value::Text(self.route.as_deref()?),
            AccessField::Isbn => Value::Made(self.isbn?.to_string()),
            AccessField::Status => Value::Number(self.status.into()),
            AccessField::Outcome => Value::Text(self.outcome),
            AccessField::Via => Value::Text(self.via.name()),
            AccessField::Range => Value::Text(self.range.as_deref()?),
            AccessField::Bytes => Value::Number(self.bytes),
            AccessField::Resumes if self.resumes == 0 => return None,
            AccessField::Resumes => Value::Number(self.resumes.into()),
            AccessField::End => Value::Text(self.end.name()),
            AccessField::HeadUs => Value::Number(micros(self.head)),
            AccessField::TotalUs => Value::Number(micros(self.total)),
        })
    }
}

/// Returns whole microseconds.
pub(in crate::telemetry) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Appends `name=value`, with quotes around a value that would not end at the next space.
fn append_pair(name: &str, value: &Value<'_>, out: &mut Vec<u8>) {
    let is_plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')
    };
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::Text(text) if is_plain(text) => (*text).to_owned(),
        Value::Made(text) if is_plain(text) => text.clone(),
        Value::Text(text) => format!("{text:?}"),
        Value::Made(text) => format!("{text:?}"),
    };
    let _ = write!(out, "{name}={text}");
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn line() -> AccessLine {
        AccessLine {
            time: "2026-11-28T05:06:07.0089Z".parse().unwrap(),
            id: RequestId::parse("6f2c3b54-6d2a-4b66-9d0c-0a6f3f0c1b2d").unwrap(),
            trace: None,
            client: Some("::ffff:192.0.2.7".parse().unwrap()),
            method: "GET",
            version: Version::HTTP_2,
            route: Some("/files/{isbn}/ my \"{file}\"\n".into()),
            isbn: Some("9788202000004".parse().unwrap()),
            status: 206,
            outcome: "ok",
            via: Via::Cache,
            range: None,
            bytes: 1000,
            resumes: 0,
            end: StreamEnd::Complete,
            head: Duration::from_micros(70),
            total: Duration::from_millis(2),
        }
    }

    fn written(is_text: bool) -> String {
        let all: Vec<_> = AccessField::ALL.into_iter().map(|(_, field)| field).collect();
        let mut out = Vec::new();
        line().append(&all, is_text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_line_is_one_object_in_the_chosen_order() {
        let text = written(false);
        assert!(
            text.starts_with(r#"{"time":"2026-11-28T05:06:07.008Z","id":"6f2c3b54-"#),
            "{text}"
        );
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["client"], "192.0.2.7");
        assert_eq!(value["status"], 206);
        assert_eq!(value["route"], "/files/{isbn}/ my \"{file}\"\n");
        assert_eq!(value["version"], "HTTP/2.0");
        assert_eq!(value["total_us"], 2000);
        assert!(value.get("range").is_none() && value.get("resumes").is_none());
    }

    #[test]
    fn text_line_has_pairs_and_one_line_end() {
        let text = written(true);
        assert!(text.starts_with("time=2026-11-28T05:06:07.008Z id=6f2c3b54-"), "{text}");
        assert!(text.contains(r#" route="/files/{isbn}/ my \"{file}\"\n" isbn=978"#), "{text}");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
    }
}
