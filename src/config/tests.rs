//! Tests that `config.toml` lists every key with its true default. `tests/config.rs` tests the
//! mistakes.

use std::collections::BTreeSet;
use std::path::Path;

use super::source::Source;
use super::table::Table;
use super::{Loaded, Mistake, ledger_of_url, read, sections};
use crate::ledger::{PostgresSettings, StoreSettings};

const REFERENCE: &str = include_str!("../../config.toml");
const SHORT: &str = include_str!("../cli/init.toml");

/// Puts the secrets into the text, so that the tests need no files.
fn with_literal_secrets(text: &str) -> String {
    let mut text = text.to_owned();
    while let Some((before, after)) = text.split_once("{ file = ") {
        let (_, after) = after.split_once(" }").unwrap();
        text = format!("{before}\"0123456789abcdef0123456789abcdef\"{after}");
    }
    text
}

/// Returns every key in the reference, with its table, including commented-out ones.
fn named(text: &str) -> BTreeSet<(String, String)> {
    let mut named = BTreeSet::new();
    let mut table = String::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_start_matches('[').split(']').next().unwrap().to_owned();
            let (above, last) = table.rsplit_once('.').unwrap_or(("", &table));
            named.insert((above.to_owned(), last.to_owned()));
            named.insert((String::new(), table.split('.').next().unwrap().to_owned()));
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if !key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            continue; // prose
        }
        named.insert((table.clone(), key.to_owned()));
        // Inline tables, one level deep: `claims = { … }`, `keys = [{ … }]`.
        let inner = value.trim_start_matches('[').strip_prefix("{ ");
        let inner = inner.filter(|_| !matches!(key, "never" | "libraries"));
        for pair in inner.into_iter().flat_map(|inner| inner.split(", ")) {
            if let Some((name, _)) = pair.split_once(" = ")
                && !matches!(name, "file" | "env")
            {
                named.insert((format!("{table}.{key}"), name.to_owned()));
            }
        }
    }
    as_one_of_several(named)
}

/// Names the keys of `[[readers.issuers]]` as those of `[readers.jwt]`, which has the same.
fn as_one_of_several(keys: BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let rename = |table: String| table.replace("readers.issuers", "readers.jwt");
    keys.into_iter().map(|(table, key)| (rename(table), key)).collect()
}

/// Returns every key that the program reads.
fn known(text: &str) -> BTreeSet<(String, String)> {
    let (document, errors) = toml::de::DeTable::parse_recoverable(text);
    assert!(errors.is_empty(), "{errors:?}");
    let source = Source::new(Path::new("config.toml"), text);
    sections(Table::root(&source, document.get_ref()));
    source.known().into_iter().map(|(table, key)| (table, key.to_owned())).collect()
}

/// Uncomments the tables of the export over OTLP.
fn with_otlp(text: &str) -> String {
    let (before, rest) = text.split_once("# [otlp]").unwrap();
    let (otlp, after) = rest.split_once("\n\n").unwrap();
    format!("{before}[otlp]{}\n\n{after}", otlp.replace("\n# ", "\n"))
}

#[test]
fn reference_lists_exactly_the_known_keys() {
    let extra = REFERENCE
        .replace("# [[tls.extra]]", "[[tls.extra]]")
        .replace("# certificate", "certificate")
        .replace("# [tls.acme]", "[tls.acme]")
        .replace("# [console.oidc]", "[console.oidc]")
        .replace("# roles = ", "roles = ")
        .replace("# [[alerts.webhooks]]\n# url", "[[alerts.webhooks]]\nurl")
        .replace("# secret = { file = \"certs/webhook", "secret = { file = \"certs/webhook");
    let extra = with_otlp(&extra);
    let known: BTreeSet<_> = [REFERENCE, &extra].into_iter().flat_map(known).collect();
    let named = named(REFERENCE);
    let missing: Vec<_> = known.difference(&named).collect();
    let invented: Vec<_> = named.difference(&known).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "missing: {missing:?}, invented: {invented:?}"
    );
}

#[test]
fn reference_defaults_match_the_program() {
    let load = |text: &str| read(Path::new("config.toml"), &with_literal_secrets(text)).unwrap();
    let (reference, short) = (load(REFERENCE), load(SHORT));
    let shown = |text: String| -> String {
        // This address differs on purpose; everything else must be a default.
        ["0.0.0.0:8443", "127.0.0.1:8443"]
            .into_iter()
            .fold(text, |text, address| text.replace(address, "ADDRESS"))
    };
    assert_eq!(
        shown(format!("{:#?}", reference.config.server)),
        shown(format!("{:#?}", short.config.server))
    );
    assert_eq!(format!("{:#?}", reference.config.admin), format!("{:#?}", short.config.admin));
    assert_eq!(format!("{:#?}", reference.config.readers), format!("{:#?}", short.config.readers));
    assert_eq!(format!("{:#?}", reference.config.gate), format!("{:#?}", short.config.gate));
    assert_eq!(reference.config.metering, short.config.metering);
    assert_eq!(format!("{:#?}", reference.config.log), format!("{:#?}", short.config.log));
    assert_eq!(format!("{:#?}", reference.config.origins), format!("{:#?}", short.config.origins));
    assert_eq!(format!("{:#?}", reference.config.catalog), format!("{:#?}", short.config.catalog));
    let otlp = with_otlp(REFERENCE).replace("ca = \"certs/collector-ca.pem\"", "");
    let mut all = load(&otlp).config.otlp.unwrap();
    let url = "[otlp]\nendpoint = \"https://collector.example.no:4318\"\n\n[ledger]";
    let least = load(&SHORT.replace("[ledger]", url)).config.otlp.unwrap();
    assert_eq!((all.headers.len(), all.resource.len()), (1, 1));
    (all.headers, all.resource) = (vec![], vec![]);
    assert_eq!(format!("{all:#?}"), format!("{least:#?}"));
    let (one, other) = (reference.config.lending, short.config.lending);
    assert_eq!((one.concurrency, one.timeout), (other.concurrency, other.timeout));
    assert_eq!(
        format!("{:#?}", reference.config.circulation),
        format!("{:#?}", short.config.circulation)
    );
}

#[test]
fn debug_shows_no_secret() {
    let text = with_literal_secrets(REFERENCE);
    let loaded = read(Path::new("config.toml"), &text).unwrap();
    assert!(text.contains("0123456789abcdef"));
    assert!(!format!("{loaded:?}").contains("0123456789abcdef"));
}

/// Reads the short configuration with these lines in `[ledger]`, and Bokbasen at this address.
fn with_ledger(ledger: &str, bokbasen: &str) -> Result<Loaded, Vec<Mistake>> {
    let text = with_literal_secrets(SHORT)
        .replace("url = \"sqlite:data/loangate.db\"", ledger)
        .replace("http://127.0.0.1:9100", bokbasen);
    read(Path::new("config.toml"), &text)
}

fn postgres(loaded: &Loaded) -> &PostgresSettings {
    match &loaded.config.ledger.store {
        StoreSettings::Postgres(settings) => settings,
        StoreSettings::Sqlite(file) => panic!("{}", file.display()),
    }
}

const DATABASE: &str = "url = \"postgres://u@localhost/x?sslmode=disable\"";
const SANDBOX: &str = "http://127.0.0.1:9100";
const BOKBASEN: &str = "https://api.loan.boknett.no";

#[test]
fn database_has_its_own_defaults() {
    let loaded = with_ledger(DATABASE, BOKBASEN).unwrap();
    let settings = postgres(&loaded);
    assert_eq!((settings.connections, settings.lease.as_secs()), (20, 30));
    assert!(settings.direct.is_none());
    assert_eq!(loaded.config.gate.freshness.as_secs(), 60);
    assert_eq!(settings.freshness.as_secs(), 60);
    let file = with_ledger("url = \"sqlite:x\"", BOKBASEN).unwrap();
    assert_eq!(file.config.gate.freshness.as_secs(), 30);
    let direct = format!("{DATABASE}\ndirect_url = \"postgres://u@[::1]:6000/x\"");
    let direct = with_ledger(&direct, BOKBASEN).unwrap();
    assert!(postgres(&direct).direct.is_some());
}

#[test]
fn database_has_the_freshness_of_the_gate() {
    let with_freshness = |freshness: &str| {
        with_ledger(&format!("{DATABASE}\n\n[gate]\nfreshness = \"{freshness}\""), BOKBASEN)
    };
    let loaded = with_freshness("200s").unwrap();
    assert_eq!(postgres(&loaded).freshness, loaded.config.gate.freshness);
    assert_eq!(postgres(&loaded).freshness.as_secs(), 200);
    let mistakes = with_freshness("301s").unwrap_err();
    assert!(mistakes[0].sentence.ends_with("Write at most \"300s\""), "{mistakes:?}");
}

#[test]
fn ledger_of_a_command_line_has_the_keys_of_the_configured_database() {
    let lines = format!("{DATABASE}\npassword = \"planted\"\nlease = \"44s\"");
    let config = with_ledger(&lines, BOKBASEN).unwrap().config;
    let file = Path::new("etc/config.toml");
    let read = |url: &str| match ledger_of_url(url, &config, file).unwrap() {
        (StoreSettings::Postgres(settings), warnings) => (*settings, warnings),
        other => panic!("{other:?}"),
    };
    let url = DATABASE.split('"').nth(1).unwrap();
    let (same, warnings) = read(url);
    assert_eq!((same.lease.as_secs(), warnings.len()), (44, 0));
    assert!(format!("{same:?}").contains("password: Some("), "{same:?}");
    let (other, _) = read("postgres://u@db.example.no/another");
    assert_eq!(
        (other.lease, other.heads),
        (PostgresSettings::DEFAULT_LEASE, "etc/ledger-heads".into())
    );
    let (_, warnings) = read("postgres://u:secret@db.example.no/another");
    assert!(warnings[0].contains("PGPASSWORD") && !warnings[0].contains("secret"), "{warnings:?}");
    let sqlite = ledger_of_url("sqlite:x.db", &config, file).unwrap().0;
    assert!(matches!(&sqlite, StoreSettings::Sqlite(file) if file == Path::new("x.db")));
    assert!(
        ledger_of_url("mysql://u:secret@x/y", &config, file)
            .is_err_and(|sentence| !sentence.contains("secret"))
    );
}

#[test]
fn password_of_the_database_is_read_once_and_hidden() {
    let in_url = "url = \"postgres://u:planted@localhost/x\"";
    let loaded = with_ledger(in_url, BOKBASEN).unwrap();
    let is_warning = |warning: &&Mistake| warning.key == "ledger.url";
    let warning = loaded.warnings.iter().find(is_warning).unwrap();
    assert!(warning.sentence.contains("contains the secret itself"), "{warning}");
    assert!(loaded.secret_files.iter().any(|file| file.key == "ledger.url"));
    let twice = with_ledger(&format!("{in_url}\npassword = \"planted\""), BOKBASEN).unwrap_err();
    assert!(twice[0].sentence.contains("password is set too"), "{twice:?}");
    let once = with_ledger(&format!("{DATABASE}\npassword = \"planted\""), BOKBASEN).unwrap();
    assert!(!format!("{loaded:?} {twice:?} {once:?}").contains("planted"));
}

#[test]
fn lease_outlasts_a_call_to_bokbasen() {
    let with_lease = |lease: &str, bokbasen: &str| {
        with_ledger(&format!("{DATABASE}\nlease = \"{lease}\""), bokbasen)
    };
    let mistake = |lease: &str| {
        let mistakes = with_lease(lease, BOKBASEN).unwrap_err();
        assert_eq!((mistakes.len(), mistakes[0].key.as_str()), (1, "ledger.lease"));
        mistakes[0].sentence.clone()
    };
    assert!(mistake("9s").ends_with("Write at least \"10s\""));
    // The default of lending.timeout is 10 s.
    assert!(mistake("12s").contains("lending.timeout (10s)"));
    assert!(mistake("12s").ends_with("lending.timeout = \"8s\" or less"));
    assert!(with_lease("15s", BOKBASEN).is_ok());
    assert!(mistake("3601s").ends_with("Write at most \"3600s\""));
    let short = with_lease("2s", SANDBOX).unwrap();
    assert!(short.warnings.iter().any(|warning| warning.key == "ledger.lease"));
}

#[test]
fn webhooks_need_https_and_a_standard_secret() {
    let text = with_literal_secrets(SHORT);
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for (url, secret, mistake) in [
        ("https://alerts.example.no/x", secret, ""),
        ("http://127.0.0.1:9000/x", secret, ""),
        ("http://alerts.example.no/x", secret, "in the clear"),
        ("https://alerts.example.no/x", "0123456789abcdef0123456789abcdef", "whsec_"),
    ] {
        let hook = format!("[[alerts.webhooks]]\nurl = \"{url}\"\nsecret = \"{secret}\"\n");
        let loaded = read(Path::new("config.toml"), &format!("{text}\n{hook}"));
        match loaded {
            Ok(loaded) => {
                assert_eq!((mistake, loaded.config.monitor.webhooks.len()), ("", 1));
                assert!(!format!("{:?}", loaded.config.monitor).contains(secret));
            }
            Err(mistakes) => {
                assert!(
                    mistakes.len() == 1 && mistakes[0].sentence.contains(mistake),
                    "{mistakes:?}"
                );
            }
        }
    }
}
