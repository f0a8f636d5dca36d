//! The fields of a line.

/// A field of a line. Its name is that of the configuration and of the line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AccessField {
    /// When the response ended, in UTC.
    Time,
    /// The id that the reader receives as `X-Request-Id`.
    Id,
    /// The id of the trace; none if it is not sampled.
    TraceId,
    /// The address of the client.
    Client,
    /// The method.
    Method,
    /// The HTTP version.
    Version,
    /// The configured pattern of the route.
    Route,
    /// The title.
    Isbn,
    /// The status of the response.
    Status,
    /// `ok`, or the slug of the problem.
    Outcome,
    /// The source of the permission.
    Via,
    /// The requested range.
    Range,
    /// The bytes of the body that were sent.
    Bytes,
    /// How often the origin broke off, and the body was resumed.
    Resumes,
    /// How the body ended.
    End,
    /// Microseconds until the head of the response.
    HeadUs,
    /// Microseconds until the end of the response.
    TotalUs,
}

impl AccessField {
    /// Every field with its name, in the order of a line.
    pub(crate) const ALL: [(&'static str, AccessField); 17] = [
        ("time", AccessField::Time),
        ("id", AccessField::Id),
        ("trace_id", AccessField::TraceId),
        ("client", AccessField::Client),
        ("method", AccessField::Method),
        ("version", AccessField::Version),
        ("route", AccessField::Route),
        ("isbn", AccessField::Isbn),
        ("status", AccessField::Status),
        ("outcome", AccessField::Outcome),
        ("via", AccessField::Via),
        ("range", AccessField::Range),
        ("bytes", AccessField::Bytes),
        ("resumes", AccessField::Resumes),
        ("end", AccessField::End),
        ("head_us", AccessField::HeadUs),
        ("total_us", AccessField::TotalUs),
    ];

    /// Returns the fields of a line if none are chosen: all but the client's address, which is
    /// personal data.
    pub(crate) fn usual() -> Vec<AccessField> {
        let all = AccessField::ALL.into_iter().map(|(_, field)| field);
        all.filter(|field| *field != AccessField::Client).collect()
    }

    /// Returns the name.
    pub(super) fn name(self) -> &'static str {
        let named = AccessField::ALL.into_iter().find(|(_, field)| *field == self);
        named.map_or("", |(name, _)| name)
    }
}
