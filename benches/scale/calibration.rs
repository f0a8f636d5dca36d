//! What each operation costs: the only place to change when it is measured again.
//!
//! `docs/scale.md` prints this table. Figures that are not measured with the program say so.

/// How a figure is known.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// With the shipped program; `docs/performance.md` has the figure.
    Measured(&'static str),
    /// With the draft of the schema in PostgreSQL alone. To be measured with the store.
    Provisional(&'static str),
    Assumed(&'static str),
}

pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) source: Source,
}

macro_rules! figures {
    ($($key:ident: $name:literal, $value:literal, $unit:literal, $kind:ident $text:literal;)*) => {
        $(pub(crate) const $key: f64 = $value;)*
        pub(crate) const ALL: &[Figure] = &[$(Figure {
            name: $name, value: $value, unit: $unit, source: Source::$kind($text),
        }),*];
    };
}

figures! {
    // The gate.
    HIT: "hit, without its bytes", 86.0, "CPU µs", Measured "`peers`, 1 KiB, HTTP/1.1, 2,000/s";
    BYTES: "bytes sent", 0.61, "CPU s/GB", Measured "`peers`, 100 MiB, HTTP/1.1";
    HANDSHAKE: "full TLS handshake", 180.0, "CPU µs", Measured "`peers`";
    MISS: "miss, loan found in the ledger", 150.0, "CPU µs", Measured "`crowds -- first`";
    REGISTRATION: "registration", 600.0, "CPU µs", Measured "`crowds -- first`";
    END: "return or expiry", 300.0, "CPU µs", Assumed "half of a registration";
    CONNECTION: "connection of a slow reader", 41.16, "KiB", Measured "`crowds -- stalled`";
    // The database.
    READ: "newest loan of a reader and title", 55.0, "database CPU µs", Provisional "`pgbench`";
    INTENT: "intent with checks and step", 600.0, "database CPU µs", Provisional "`pgbench`";
    STEP: "any later step", 500.0, "database CPU µs", Provisional "`pgbench`";
    OPENED: "first-open mark", 200.0, "database CPU µs", Provisional "`pgbench`";
    METER_BATCH: "metering, each transaction", 200.0, "database CPU µs", Provisional "`pgbench`";
    METER_ROW: "metering, each file of a loan", 15.0, "database CPU µs", Provisional "`pgbench`";
    FEED: "poll of the change feed", 530.0, "database CPU µs", Provisional "`pgbench`, 1,000 rows";
    VACUUM: "vacuum, beside all other CPU", 0.1, "share", Assumed "one run took 0.01";
    LOAN_BYTES: "loan, 5 steps, 2.5 files", 4_100.0, "bytes", Provisional "300,000 loans";
    BLOAT: "dead and free space", 1.3, "factor", Assumed "fillfactor, time between vacuums";
    LOAN_WAL: "log of a loan's life", 25_000.0, "bytes", Provisional "`pgbench`, lz4";
    METER_WAL: "log of a metering transaction", 900.0, "bytes", Provisional "`pgbench`, lz4";
    ROW_WAL: "log of a metering row", 310.0, "bytes", Provisional "`pgbench`, lz4";
    COMMIT: "flush of the log and the standby's", 2.0, "ms", Assumed "one region";
    ROUND_TRIPS: "round trips of a transaction", 2.0, "ms", Assumed "4 of 0.5 ms";
    // Bokbasen.
    LENDING: "response of Bokbasen, median", 250.0, "ms", Assumed "lognormal, deviation 0.6";
    PENDING: "begins that Bokbasen answers as pending", 0.7, "share", Assumed "one poll, 1 s later";
    REFUSED: "begins that Bokbasen refuses", 0.05, "share", Assumed "no licence is free";
}
