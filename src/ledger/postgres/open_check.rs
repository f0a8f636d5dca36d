//! A test whether the database suits a ledger, for `loangate check --online`. It changes nothing.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{Connection, PgConnection, Row};

use super::connect::{Connector, TriedHost, accepts_writes, phrase, within};
use super::copy_marks;
use super::endpoint::{Host, Tls};
use super::settings::PostgresSettings;
use crate::ledger::LedgerError;

/// The oldest supported version, as `server_version_num` counts.
const MIN_VERSION: u32 = 14_00_00;
/// The deadline of the queries on one host.
const DEADLINE: Duration = Duration::from_secs(5);

/// The parameters without which a committed transaction can be lost.
const DURABILITY: [(&str, &str); 3] = [
    ("fsync", "a crash of the machine can destroy the database"),
    ("full_page_writes", "a crash of the machine can destroy the database"),
    ("synchronous_commit", "a crash or a failover can lose loans that Bokbasen has accepted"),
];

/// What the test found, as sentences.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DatabaseFinding {
    /// Something works.
    Good(String),
    /// Something is valid but not advisable.
    Doubtful(String),
    /// Something keeps the gate from working, or from keeping its promises.
    Failed(String),
}

use DatabaseFinding::{Doubtful, Failed, Good};

/// Tests every host of `url` and of `direct_url`. Returns the findings of each.
pub async fn check_database(settings: &PostgresSettings) -> DatabaseFindings {
    let connector = Connector::new(settings);
    let url = check_hosts(settings, connector.try_hosts(false).await).await;
    let direct_url = match &settings.direct {
        Some(_) => check_direct(connector.try_hosts(true).await).await,
        None => Vec::new(),
    };
    DatabaseFindings { url, direct_url }
}

/// The findings for each key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DatabaseFindings {
    /// About `ledger.url`.
    pub url: Vec<DatabaseFinding>,
    /// About `ledger.direct_url`.
    pub direct_url: Vec<DatabaseFinding>,
}

async fn check_hosts(settings: &PostgresSettings, hosts: Vec<TriedHost>) -> Vec<DatabaseFinding> {
    let mut findings = Vec::new();
    let mut failures = Vec::new();
    let mut has_primary = false;
    for TriedHost { name, connected } in hosts {
        let examined = match connected {
            Ok(connection) => within(DEADLINE, examine(connection)).await,
            Err(error) => Err(error),
        };
        match examined {
            Err(error) => failures.push(format!("{name}: {}", phrase(&error))),
            Ok(Examined { accepts_writes: false, .. }) => {
                findings.push(Good(format!("{name} responds and accepts no writes, as a standby")));
            }
            Ok(examined) => {
                has_primary = true;
                findings.extend(judge(settings, &name, &examined));
            }
        }
    }
    // One host that fails is no mistake: the others are there for that.
    findings.extend(failures.into_iter().map(|failure| match has_primary {
        true => Doubtful(failure),
        false => Failed(failure),
    }));
    if !has_primary && findings.iter().all(|finding| matches!(finding, Good(_))) {
        findings.push(Failed("no host accepts writes. Name the primary, too".to_owned()));
    }
    findings
}

async fn check_direct(hosts: Vec<TriedHost>) -> Vec<DatabaseFinding> {
    let mut findings = Vec::new();
    for TriedHost { name, connected } in hosts {
        findings.push(match connected {
            Ok(connection) => {
                let _ = connection.close().await;
                Good(format!("{name} accepts direct connections"))
            }
            Err(error) => Doubtful(format!("{name}: {}", phrase(&error))),
        });
    }
    findings
}

/// What a server reports about itself.
#[derive(Debug)]
struct Examined {
    accepts_writes: bool,
    /// Parameters of the server.
    parameters: HashMap<String, String>,
    /// Why no gate may open the ledger in this database, if it was moved or is half copied.
    refusal: Option<LedgerError>,
}

async fn examine(mut connection: PgConnection) -> Result<Examined, sqlx::Error> {
    let accepts_writes = accepts_writes(&mut connection).await?;
    let query = sqlx::raw_sql(
        "SELECT name, setting FROM pg_settings WHERE name IN ('server_version_num', \
         'server_version', 'fsync', 'full_page_writes', 'synchronous_commit', 'max_connections', \
         'superuser_reserved_connections', 'reserved_connections', 'server_encoding', \
         'log_statement', 'log_min_duration_statement', 'log_min_duration_sample', \
         'log_parameter_max_length')",
    );
    let mut parameters = HashMap::new();
    for row in query.fetch_all(&mut connection).await? {
        parameters.insert(row.try_get(0)?, row.try_get(1)?);
    }
    // Another program may have a table of the one name.
    let has_ledger = "SELECT to_regclass('loans') IS NOT NULL AND to_regclass('meta') IS NOT NULL";
    let has_ledger: bool =
        sqlx::query_scalar(has_ledger).persistent(false).fetch_one(&mut connection).await?;
    let refusal = match has_ledger {
        true => copy_marks::read(&mut connection).await?.allow_gate().err(),
        false => None,
    };
    let _ = connection.close().await;
    Ok(Examined { accepts_writes, parameters, refusal })
}

impl Examined {
    fn number(&self, name: &str) -> Option<u32> {
        self.parameters.get(name)?.parse().ok()
    }

    fn text(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("unknown", String::as_str)
    }
}

/// Judges the primary.
fn judge(settings: &PostgresSettings, name: &str, examined: &Examined) -> Vec<DatabaseFinding> {
    let mut findings = Vec::new();
    let is_socket = |host: &&Host| host.is_socket() && host.to_string() == name;
    let encryption = match settings.endpoint.tls {
        Tls::Disabled => "without TLS, within this machine",
        Tls::VerifyFull(_) if settings.endpoint.hosts.iter().any(|host| is_socket(&host)) => {
            "without TLS, within this machine"
        }
        Tls::VerifyFull(_) => "with TLS; certificate and host name are valid",
    };
    findings.push(Good(format!(
        "{name} accepts writes (PostgreSQL {}, {encryption})",
        examined.text("server_version")
    )));
    if examined.number("server_version_num").is_some_and(|version| version < MIN_VERSION) {
        findings.push(Failed(format!(
            "{name} has PostgreSQL {}. Install version 14 or later",
            examined.text("server_version")
        )));
    }
    let encoding = examined.text("server_encoding");
    if encoding != "UTF8" {
        findings.push(Failed(format!(
            "{name} has a database with the encoding {encoding}, which cannot store every text. \
             Create it with ENCODING 'UTF8' TEMPLATE template0"
        )));
    }
    for (parameter, consequence) in DURABILITY {
        // `local` does not wait for a standby, which a failover then makes the primary.
        let value = examined.text(parameter);
        if matches!(value, "off" | "local") {
            let sentence = format!("{name} has {parameter} = {value}: {consequence}. Set it on");
            findings.push(Failed(sentence));
        }
    }
    findings.extend(examined.refusal.as_ref().map(|error| Failed(format!("{name}: {error}"))));
    findings.extend(judge_logging(name, examined));
    // Behind a pooler, the number of connections to the server is the pooler's.
    if settings.direct.is_none() {
        findings.extend(judge_connections(settings.connections, name, examined));
    }
    findings
}

/// Warns if the log of the server may show the parameters of statements, which contain pseudonyms.
fn judge_logging(name: &str, examined: &Examined) -> Option<DatabaseFinding> {
    let is_set = |parameter: &str, off: &str| {
        examined.parameters.get(parameter).is_some_and(|setting| setting != off)
    };
    let logging = if matches!(examined.text("log_statement"), "mod" | "all") {
        "log_statement"
    } else if is_set("log_min_duration_statement", "-1") {
        "log_min_duration_statement"
    } else if is_set("log_min_duration_sample", "-1") {
        "log_min_duration_sample"
    } else {
        return None;
    };
    is_set("log_parameter_max_length", "0").then(|| {
        Doubtful(format!(
            "{name} has {logging} = {}, so its log shows pseudonyms of borrowers. Set \
             log_parameter_max_length = 0",
            examined.text(logging)
        ))
    })
}

fn judge_connections(needed: u32, name: &str, examined: &Examined) -> Option<DatabaseFinding> {
    let most = examined.number("max_connections")?;
    let reserved = ["superuser_reserved_connections", "reserved_connections"];
    let reserved: u32 = reserved.iter().filter_map(|name| examined.number(name)).sum();
    let usable = most.saturating_sub(reserved);
    let what = format!(
        "{name} has max_connections = {most}, of which this gate and others share {usable}"
    );
    Some(match usable.checked_div(needed) {
        Some(0) => Failed(format!(
            "{what}, and ledger.connections is {needed}. Raise the one, or lower the other"
        )),
        Some(1) => Doubtful(format!(
            "{what}: enough for one gate with ledger.connections = {needed}, and not for a second"
        )),
        Some(gates) => Good(format!("{what}: enough for {gates} gates")),
        None => return None,
    })
}

#[cfg(test)]
#[path = "open_check_tests.rs"]
mod tests;
