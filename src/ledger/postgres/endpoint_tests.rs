//! Tests of what completes a URL: the environment, the password file and the TLS settings.

use std::os::unix::fs::PermissionsExt;

use secrecy::ExposeSecret;

use super::*;

/// Reads a URL with these variables. Paths are relative to the directory.
fn read_in(
    directory: &Path,
    text: &str,
    password: Option<&SecretString>,
    variables: &[(&str, &str)],
) -> Result<ReadEndpoint, String> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let path = |file: &str| directory.join(file);
    Endpoint::read(text, Sources { environment: &environment, path: &path, password })
}

fn read(text: &str, variables: &[(&str, &str)]) -> Endpoint {
    read_in(Path::new(""), text, None, variables).unwrap().endpoint
}

fn mistake(text: &str, variables: &[(&str, &str)]) -> String {
    read_in(Path::new(""), text, None, variables).unwrap_err()
}

fn hosts(endpoint: &Endpoint) -> Vec<String> {
    endpoint.hosts.iter().map(ToString::to_string).collect()
}

fn password(host: &Host) -> Option<&str> {
    host.password.as_ref().map(ExposeSecret::expose_secret)
}

#[test]
fn defaults_are_those_of_libpq_with_verification() {
    let endpoint = read("postgres://gate@db.example.no", &[]);
    assert_eq!(hosts(&endpoint), ["db.example.no:5432"]);
    assert_eq!((endpoint.user.as_str(), endpoint.database.as_str()), ("gate", "gate"));
    assert_eq!(endpoint.tls, Tls::VerifyFull(None));
    assert_eq!(endpoint.application_name, "loangate");
    assert_eq!(endpoint.connect_timeout, Duration::from_secs(5));
    assert!(endpoint.hosts[0].password.is_none());
}

#[test]
fn variables_complete_the_url() {
    let variables = [
        ("PGHOST", "a,::1,/run/postgresql"),
        ("PGPORT", "6000,6001,6002"),
        ("PGUSER", "gate"),
        ("PGDATABASE", "loans"),
        ("PGPASSWORD", "secret"),
    ];
    let endpoint = read("postgres://", &variables);
    assert_eq!(hosts(&endpoint), ["a:6000", "[::1]:6001", "/run/postgresql:6002"]);
    assert_eq!((endpoint.user.as_str(), endpoint.database.as_str()), ("gate", "loans"));
    assert!(endpoint.hosts.iter().all(|host| password(host) == Some("secret")));
    let endpoint = read("postgres://me:mine@b:7000,c/x", &variables[1..]);
    assert_eq!(hosts(&endpoint), ["b:7000", "c:6001"]);
    assert_eq!((endpoint.user.as_str(), endpoint.database.as_str()), ("me", "x"));
    assert_eq!(password(&endpoint.hosts[0]), Some("mine"));
    assert_eq!(hosts(&read("postgres://u@b,c", &[("PGPORT", "7")])), ["b:7", "c:7"]);
}

#[test]
fn host_and_user_are_required() {
    assert!(mistake("postgres://", &[("PGUSER", "u")]).contains("names no host"));
    assert!(mistake("postgres://db", &[("PGUSER", "")]).contains("names no user"));
    assert!(mistake("postgres://u@db", &[("PGPORT", "x")]).starts_with("PGPORT: a port"));
    assert!(mistake("postgres://u@", &[("PGHOST", "a b")]).starts_with("PGHOST: a host"));
}

#[test]
fn plaintext_needs_local_hosts_only() {
    for hosts in ["127.0.0.1", "localhost:1,[::1]", "%2Frun%2Fpostgresql", "127.9.9.9"] {
        let endpoint = read(&format!("postgres://u@{hosts}/x?sslmode=disable"), &[]);
        assert_eq!(endpoint.tls, Tls::Disabled, "{hosts}");
    }
    for hosts in ["db", "localhost,10.0.0.1", "localhost.example.no"] {
        let sentence = mistake(&format!("postgres://u@{hosts}/x"), &[("PGSSLMODE", "disable")]);
        assert!(sentence.contains("in the clear"), "{sentence}");
    }
    for mode in ["allow", "prefer", "require", "verify-ca"] {
        let sentence = mistake(&format!("postgres://u@localhost/x?sslmode={mode}"), &[]);
        assert!(sentence.contains("does not verify"), "{sentence}");
    }
    assert!(mistake("postgres://u@db/x?sslmode=on", &[]).contains("is not known"));
    assert_eq!(read("postgres://u@localhost/x", &[]).tls, Tls::VerifyFull(None));
}

#[test]
fn root_certificates_are_read_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let text = "postgres://u@db/x?sslrootcert=ca.pem";
    let read = || read_in(directory.path(), text, None, &[]);
    assert!(read().unwrap_err().contains("cannot be read"));
    std::fs::write(&file, "no").unwrap();
    assert!(read().unwrap_err().contains("has no certificate"));
    std::fs::write(&file, [PEM, b"x"].concat()).unwrap();
    let expected = Tls::VerifyFull(Some([PEM, b"x"].concat()));
    assert_eq!(read().unwrap().endpoint.tls, expected);
    let variables = [("PGSSLROOTCERT", file.to_str().unwrap())];
    let from_variable = read_in(Path::new(""), "postgres://u@db/x", None, &variables);
    assert_eq!(from_variable.unwrap().endpoint.tls, expected);
    let system = "postgres://u@db/x?sslrootcert=system";
    let system = read_in(Path::new(""), system, None, &variables).unwrap().endpoint;
    assert_eq!(system.tls, Tls::VerifyFull(None));
}

#[test]
fn password_comes_from_one_place() {
    let key: SecretString = "secret".into();
    let read = |text| read_in(Path::new(""), text, Some(&key), &[("PGPASSWORD", "other")]);
    let endpoint = read("postgres://u@db").unwrap();
    assert_eq!(password(&endpoint.endpoint.hosts[0]), Some("secret"));
    assert!(!endpoint.has_password_in_url);
    assert!(read("postgres://u:secret@db").unwrap_err().contains("password is set too"));
    let in_url = read_in(Path::new(""), "postgres://u:secret@db", None, &[]).unwrap();
    assert!(in_url.has_password_in_url);
    assert!(!format!("{in_url:?}").contains("secret"), "{in_url:?}");
}

#[test]
fn password_file_has_a_password_for_each_host() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(".pgpass");
    std::fs::write(&file, "a:5432:x:u:first\nb:*:*:*:second\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let shown = file.to_str().unwrap().to_owned();
    let home = directory.path().to_str().unwrap();
    for (text, variable) in [
        ("postgres://u@a,b,c/x", ("HOME", home)),
        ("postgres://u@a,b,c/x", ("PGPASSFILE", shown.as_str())),
        ("postgres://u@a,b,c/x?passfile=.pgpass", ("HOME", "/nowhere")),
    ] {
        let found = read_in(directory.path(), text, None, &[variable]).unwrap();
        assert_eq!(found.warnings, Vec::<String>::new());
        let passwords: Vec<_> = found.endpoint.hosts.iter().map(password).collect();
        assert_eq!(passwords, [Some("first"), Some("second"), None]);
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let found = read_in(directory.path(), "postgres://u@a/x", None, &[("HOME", home)]).unwrap();
    assert!(found.warnings[0].contains("chmod 600"), "{:?}", found.warnings);
    assert_eq!(password(&found.endpoint.hosts[0]), None);
    let missing = [("PGPASSFILE", "/nowhere/pgpass")];
    let found = read_in(Path::new(""), "postgres://u@a/x", None, &missing).unwrap();
    assert!(found.warnings[0].contains("does not exist"));
}
