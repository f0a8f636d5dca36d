//! Invalid configurations, each with the line and the message that `loangate check` reports.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The configuration of `init`; every case changes one place in it.
const GOOD: &str = include_str!("../../src/cli/init.toml");

/// Name of the case, old text, new text, and the reported mistakes in order.
type Case = (&'static str, &'static str, &'static str, &'static [&'static str]);

fn loangate(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("LOANGATE_LOG")
        .output()
        .unwrap()
}

fn initialised() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let made = loangate(&["init", "--dir", "."], directory.path());
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    directory
}

fn check(directory: &Path, text: &str) -> (bool, String, String) {
    fs::write(directory.join("case.toml"), text).unwrap();
    let output = loangate(&["check", "--config", "case.toml"], directory);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn init_writes_a_valid_configuration() {
    let directory = initialised();
    let (good, said, errors) = check(directory.path(), GOOD);
    assert!(good, "{errors}");
    assert_eq!(said, "case.toml is good\n");
}

#[test]
fn init_overwrites_nothing_and_lists_kept_files() {
    let directory = initialised();
    let key = directory.path().join("certs/pseudonym.key");
    let before = fs::read(&key).unwrap();
    fs::write(directory.path().join("config.toml"), "# mine").unwrap();
    let again = loangate(&["init", "--dir", "."], directory.path());
    let said = String::from_utf8(again.stdout).unwrap();
    assert!(again.status.success());
    assert!(said.lines().all(|line| line.starts_with("kept ")), "{said}");
    assert_eq!(fs::read(&key).unwrap(), before);
    assert_eq!(fs::read_to_string(directory.path().join("config.toml")).unwrap(), "# mine");
    fs::remove_file(directory.path().join("certs/server.key")).unwrap();
    let half = loangate(&["init", "--dir", "."], directory.path());
    assert!(!half.status.success());
    assert!(String::from_utf8(half.stderr).unwrap().contains("without ./certs/server.key"));
}

#[test]
fn reference_configuration_is_valid_with_keys_of_init() {
    let directory = initialised();
    let (good, _, errors) = check(directory.path(), include_str!("../../config.toml"));
    assert!(good, "{errors}");
}

#[test]
fn keys_are_private_to_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let directory = initialised();
    for entry in fs::read_dir(directory.path().join("certs")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let public = ["ca.pem", "server.pem", "jwks.json"].contains(&name.as_str());
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if public { 0o644 } else { 0o600 }, "{name}");
    }
}

#[test]
fn literal_secret_needs_a_private_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = initialised();
    let token = "0123456789abcdef0123456789abcdef";
    let text = GOOD.replace("{ file = \"certs/admin.token\" }", &format!("\"{token}\""));
    let allow = |mode| {
        let file = directory.path().join("case.toml");
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    };
    check(directory.path(), &text);
    allow(0o644);
    let (good, _, errors) = check(directory.path(), &text);
    let expected = "case.toml:13: admin.token: other users can read or change case.toml (mode 644)";
    assert!(!good && errors.contains(expected), "{errors}");
    allow(0o600);
    let (good, said, _) = check(directory.path(), &text);
    assert!(
        good && said
            .contains("warning: case.toml:13: admin.token: the configuration contains the secret"),
        "{said}"
    );
    assert!(!said.contains(token));
}

/// A service reads its secrets by its group, and cannot change them.
#[test]
fn group_may_read_but_not_change_secrets_of_root() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let directory = initialised();
    let file = directory.path().join("certs/admin.token");
    let of_root = fs::metadata(&file).unwrap().uid() == 0;
    for (mode, is_good) in [(0o440, of_root), (0o640, of_root), (0o660, false), (0o644, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let (good, _, errors) = check(directory.path(), GOOD);
        assert_eq!(good, is_good, "{mode:o}: {errors}");
    }
}

#[test]
fn white_space_around_a_secret_is_a_warning() {
    let directory = initialised();
    fs::write(directory.path().join("certs/lending.secret"), "secret \n").unwrap();
    let (good, said, _) = check(directory.path(), GOOD);
    assert!(
        good && said.contains("lending.client_secret: the secret starts or ends with white"),
        "{said}"
    );
    assert!(!said.contains("\"secret"));
}

#[test]
fn freshness_must_be_positive() {
    let directory = initialised();
    for (freshness, is_good) in [("1s", true), ("0s", false)] {
        let gate = format!("\n[gate]\nfreshness = \"{freshness}\"\n");
        let (good, _, errors) =
            check(directory.path(), &(GOOD.replacen("[gate]\n", "", 1) + &gate));
        assert_eq!(good, is_good, "{errors}");
        assert_eq!(
            errors.contains("gate.freshness: it must be longer than zero"),
            !is_good,
            "{errors}"
        );
    }
}

#[test]
fn missing_configuration_file_is_reported() {
    let directory = initialised();
    let output = loangate(&["check", "--config", "nowhere.toml"], directory.path());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success()
            && errors.contains("nowhere.toml:1: the configuration cannot be read")
    );
    let output = loangate(&["serve", "--config", "nowhere.toml"], directory.path());
    assert!(!output.status.success(), "and serve does not start without it");
}

const CASES: &[Case] = &[
    (
        "no TOML",
        "public = \"127.0.0.1:8443\"",
        "public = 127.0.0.1:8443",
        &["4: this is not TOML: invalid float. Strings need quotes, table names need brackets"],
    ),
    (
        "two mistakes of TOML",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"",
        "certificate = certs/server.pem\nkey = \"certs/server.key",
        &[
            "8: this is not TOML: string values must be quoted, expected literal string. Strings \
             need quotes, table names need brackets",
            "9: this is not TOML: invalid basic string, expected `\"`. Strings need quotes, table \
             names need brackets",
        ],
    ),
    (
        "a key twice",
        "auth = \"oauth\"",
        "auth = \"oauth\"\nauth = \"ticket\"",
        &["31: this key or table is defined twice. Keep one of the two"],
    ),
    (
        "a misspelt key",
        "certificate =",
        "certifcate =",
        &[
            "7: tls.certificate: it is missing. Write certificate = \"certs/server.pem\"",
            "8: tls.certifcate: there is no such key. Write certificate",
        ],
    ),
    (
        "a key of another table",
        "[ledger]",
        "[ledger]\npatience = \"5s\"",
        &["37: ledger.patience: there is no such key here. It belongs to [gate]"],
    ),
    (
        "a key of nowhere",
        "[ledger]",
        "[ledger]\nwal = true",
        &["37: ledger.wal: there is no such key. This table has connections, direct_url, heads, \
             lease, password, url"],
    ),
    (
        "a misspelt table",
        "[ledger]",
        "[leger]",
        &[
            "1: ledger: it is missing. Write the table [ledger] with url = \
             \"sqlite:data/loangate.db\"",
            "36: leger: there is no such key. Write [ledger]",
        ],
    ),
    (
        "an address without a port",
        "\"127.0.0.1:8443\"",
        "\"127.0.0.1\"",
        &["4: listen.public: \"127.0.0.1\" is not an address with a port. Write one like \
             \"0.0.0.0:8443\" or \"[::1]:9443\""],
    ),
    (
        "one address for both",
        "admin = \"127.0.0.1:9443\"",
        "admin = \"127.0.0.1:8443\"",
        &["5: listen.admin: it is the same address as public. Write another port"],
    ),
    (
        "an admin address that a public wildcard includes",
        "public = \"127.0.0.1:8443\"",
        "public = [\"127.0.0.1:8443\", \"0.0.0.0:9443\"]",
        &["5: listen.admin: it overlaps the public address 0.0.0.0:9443. Write another port"],
    ),
    (
        "a proxied address that is not public, and no proxies",
        "[listen]\n",
        "[listen]\nproxy_protocol_at = [\"127.0.0.1:443\"]\n",
        &[
            "4: listen.proxy_protocol_at: listen.public has no 127.0.0.1:443. Write an address \
             that it has",
            "4: listen.proxy_protocol_at: proxy_protocol lists no network that sends a header. Add \
             it, or remove this key",
        ],
    ),
    (
        "an admin address that is also public",
        "public = \"127.0.0.1:8443\"",
        "public = [\"[::1]:8443\", \"127.0.0.1:9443\"]",
        &["5: listen.admin: it is the same address as public. Write another port"],
    ),
    (
        "an address twice",
        "public = \"127.0.0.1:8443\"",
        "public = [\"127.0.0.1:8443\", \"127.0.0.1:8443\"]",
        &["4: listen.public: 127.0.0.1:8443 is listed twice. Remove one of them"],
    ),
    (
        "no public address",
        "public = \"127.0.0.1:8443\"",
        "public = []",
        &["4: listen.public: the list is empty. Write an address like \"0.0.0.0:8443\""],
    ),
    (
        "a number for a string",
        "admin = \"127.0.0.1:9443\"",
        "admin = 9443",
        &["5: listen.admin: this is a number. Write a string like \"0.0.0.0:8443\" or \
             \"[::1]:9443\""],
    ),
    (
        "a certificate that is not there",
        "certs/server.pem",
        "certs/other.pem",
        &["8: tls.certificate: certs/other.pem cannot be read as PEM: No such file or directory \
             (os error 2)"],
    ),
    (
        "a key that is no key",
        "key = \"certs/server.key\"",
        "key = \"certs/jwks.json\"",
        &[
            "9: tls.key: certs/jwks.json cannot be read as PEM: there is no private key in it",
            "9: tls.key: other users can read or change certs/jwks.json (mode 644). Allow only its \
             owner: chmod 600 certs/jwks.json",
        ],
    ),
    (
        "a key of another certificate",
        "key = \"certs/server.key\"",
        "key = \"certs/jwt.key\"",
        &["9: tls.key: certs/jwt.key is not the key of certs/server.pem. These two commands must \
             print the same: openssl x509 -in certs/server.pem -noout -pubkey and openssl pkey -in \
             certs/jwt.key -pubout. In a chain the server's own certificate is the first"],
    ),
    (
        "a secret file that is not there",
        "certs/admin.token",
        "certs/nothing",
        &["13: admin.token: the file certs/nothing cannot be read: No such file or directory (os \
             error 2). Create it, or name another; `loangate init` creates keys for development"],
    ),
    (
        "a secret that the environment lacks",
        "{ file = \"certs/admin.token\" }",
        "{ env = \"LOANGATE_NO_SUCH\" }",
        &["13: admin.token: the environment has no LOANGATE_NO_SUCH, or it is empty. Set it \
             before the start"],
    ),
    (
        "a secret from nowhere",
        "{ file = \"certs/admin.token\" }",
        "{ vault = \"x\" }",
        &["13: admin.token: a secret cannot come from \"vault\". Write { file = \"certs/…\" } or \
             { env = \"NAME\" }"],
    ),
    (
        "a secret from two places",
        "{ file = \"certs/admin.token\" }",
        "{ file = \"certs/admin.token\", env = \"X\" }",
        &["13: admin.token: a secret needs exactly one source. Write { file = \"certs/…\" } or { \
             env = \"NAME\" }"],
    ),
    (
        "a ticket key that is too short",
        "ticket_keys = [{ file = \"certs/ticket.key\" }]",
        "ticket_keys = [{ file = \"certs/ticket.key\" }, \"short\"]",
        &["10: tls.ticket_keys: the key has 5 bytes and needs 32. Make one with `openssl rand \
             -hex 32`"],
    ),
    (
        "an unknown version and suite of TLS",
        "ticket_keys = [{ file = \"certs/ticket.key\" }]",
        "minimum_version = \"1.1\"\ncipher_suites = [\"TLS_RSA_WITH_AES_128_CBC_SHA\"]",
        &[
            "10: tls.minimum_version: \"1.1\" is not known. Write \"1.2\" or \"1.3\"",
            "11: tls.cipher_suites: \"TLS_RSA_WITH_AES_128_CBC_SHA\" is no cipher suite of this \
             version. Write some of TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256, \
             TLS_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, \
             TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, \
             TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, \
             TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, \
             TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        ],
    ),
    (
        "cipher suites of another version of TLS",
        "ticket_keys = [{ file = \"certs/ticket.key\" }]",
        "minimum_version = \"1.3\"\n\
         cipher_suites = [\"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]",
        &["11: tls.cipher_suites: none of them is one of TLS 1.3, which minimum_version demands. \
             Add \"TLS_AES_256_GCM_SHA384\""],
    ),
    (
        "an ordered certificate beside files",
        "ticket_keys = [{ file = \"certs/ticket.key\" }]",
        "[tls.acme]\ndirectory = \"http://ca.example.no/directory\"\n\
         names = [\"*.example.no\"]\ncontact = [\"nobody\"]\neab_key_id = \"7\"",
        &[
            "8: tls.certificate: [tls.acme] orders the certificate. Remove certificate and key, or \
             remove that table",
            "9: tls.key: [tls.acme] orders the certificate. Remove certificate and key, or remove \
             that table",
            "10: tls.acme.terms_agreed: the authority issues certificates only to those who agree \
             to its terms. Read them, and write terms_agreed = true",
            "11: tls.acme.directory: ACME needs HTTPS. Write the directory URL of the authority, \
             which starts with https://",
            "12: tls.acme.names: \"*.example.no\" is a wildcard, which no authority validates by a \
             connection. Write each name",
            "13: tls.acme.contact: \"nobody\" is not a mail address. Write one like \
             \"drift@example.no\"",
            "14: tls.acme.eab_key_id: the authority gives a key id and a key. Write eab_key_id and \
             eab_hmac_key, or none of them",
        ],
    ),
    (
        "an ordered certificate without what it needs",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "acme = { terms_agreed = true }\n",
        &[
            "8: tls.acme.directory: it is missing. Write directory = \
             \"https://acme-v02.api.letsencrypt.org/directory\"",
            "8: tls.acme.names: it is missing. Write names = [\"files.example.no\"]",
        ],
    ),
    (
        "names that cannot be ordered",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "acme = { directory = \"https://ca.example.no/d\", terms_agreed = true, names = [\
         \"a.example.no\", \"A.example.no\"] }\n",
        &["8: tls.acme.names: \"a.example.no\" is there twice. Remove one of the two"],
    ),
    (
        "an address as an ordered name",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "acme = { directory = \"https://ca.example.no/d\", terms_agreed = true, names = [\
         \"10.0.0.7\"] }\n",
        &["8: tls.acme.names: \"10.0.0.7\" is not a DNS name. Write one like \
             \"files.example.no\", and letters such as ø in the form xn--…"],
    ),
    (
        "a directory with a fragment, and suites that no ordered key is for",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "cipher_suites = [\"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]\n\
         acme = { directory = \"https://ca.example.no/d#x\", terms_agreed = true, names = [\
         \"a.example.no\"] }\n",
        &[
            "8: tls.cipher_suites: [tls.acme] orders certificates with ECDSA keys, and none of \
             them is for these. Add \"TLS_AES_256_GCM_SHA384\"",
            "9: tls.acme.directory: this URL cannot have a query or a fragment. Remove everything \
             from ? or # on",
        ],
    ),
    (
        "a name that no file can have",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "acme = { directory = \"https://ca.example.no/d\", terms_agreed = true, names = [\
         \"a.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.\
         aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.\
         aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.\
         aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"] }\n",
        &["8: tls.acme.names: a name has 240 bytes at most, this has 245"],
    ),
    (
        "a root of the authority that is none",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"\n",
        "acme = { directory = \"https://ca.example.no/d\", terms_agreed = true, names = [\
         \"a.example.no\"], ca = \"certs/jwt.key\" }\n",
        &["8: tls.acme.ca: certs/jwt.key has no certificate in PEM"],
    ),
    (
        "ticket keys that are no list",
        "ticket_keys = [{ file = \"certs/ticket.key\" }]",
        "ticket_keys = { file = \"certs/ticket.key\" }",
        &["10: tls.ticket_keys: this is a table. Write a list: [ … ]"],
    ),
    (
        "an admin token that is too short",
        "{ file = \"certs/admin.token\" }",
        "\"short\"",
        &["13: admin.token: the key has 5 bytes and needs 32. Make one with `openssl rand -hex \
             32`"],
    ),
    (
        "a provider of OpenID Connect without what it needs",
        "[admin]",
        "[console.oidc]\nissuer = \"http://login.example.no\"\nclient_id = \"console\"\n\
             client_secret = { env = \"PATH\" }\nscopes = [\"profile\"]\nrole_claim = []\n\
             roles = { support = [] }\n\n[admin]",
        &[
            "12: console.oidc: the provider must know where to send the browser back to. Write \
             [console] url = \"https://gate.example.no:9443\"",
            "13: console.oidc.issuer: a secret would be sent in the clear. Write https://",
            "16: console.oidc.scopes: without openid the provider sends no ID token. Add \
             \"openid\"",
            "17: console.oidc.role_claim: this names no claim. Write \"roles\", or \
             [\"realm_access\", \"roles\"]",
            "18: console.oidc.roles.support: nobody would have a role. Write support = \
             [\"loangate-support\"]",
        ],
    ),
    (
        "a console below a path",
        "[admin]",
        "[console]\nurl = \"https://gate.example.no/console\"\n\n[admin]",
        &["13: console.url: the console has no path. Remove everything after the host and the \
             port"],
    ),
    (
        "a handover socket with a path that is too long",
        "[tls]",
        concat!(
            "[server]\nhandover_timeout = \"0s\"\nhandover = \"/0123456789/0123456789/0123456789/",
            "0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789\"",
            "\n\n[tls]"
        ),
        &[
            "8: server.handover_timeout: it must be longer than zero. Write a duration like \
             \"15s\"",
            "9: server.handover: the path has 110 bytes, and the system allows 103 for this \
             socket. Write a shorter path, or \"\" for no upgrades while it runs",
        ],
    ),
    (
        "a Unix socket of operators with a path that is too long",
        "[tls]",
        concat!(
            "admin_socket = \"/0123456789/0123456789/0123456789/0123456789/0123456789/",
            "0123456789/0123456789/0123456789/0123456789/0123456789\"\n\n[tls]"
        ),
        &["7: listen.admin_socket: the path has 110 bytes, and the system allows 103 for this \
             socket. Write a shorter path, or remove the key"],
    ),
    (
        "one path for two Unix sockets",
        "[tls]",
        "admin_socket = \"run/gate.sock\"\n\n[server]\nhandover = \"run/gate.sock\"\n\n[tls]",
        &["10: server.handover: it is the same path as listen.admin_socket. Write another"],
    ),
    (
        "requests that are stored for too long, and from no memory",
        "[tls]",
        "[server]\nrecent_requests = 0\nstore_requests = \"8d\"\n\n[tls]",
        &[
            "9: server.store_requests: it is longer than support needs who read what when. Write \
             at most \"7d\"",
            "9: server.store_requests: requests are stored from memory. Write recent_requests = \
             10000",
        ],
    ),
    (
        "requests that are stored for longer than the borrowers of loans",
        "[privacy]",
        "[server]\nstore_requests = \"7d\"\n\n[readers]\nmax_lifetime = \"1d\"\n\n[privacy]\n\
         retention = \"2d\"",
        &["22: privacy.retention: server.store_requests keeps the borrower of a request for \
             longer. Write a longer time here, or a shorter one there"],
    ),
    (
        "a host of the admin listener with a port",
        "[admin]",
        "[admin]\nhosts = [\"gate.example.no:9443\"]",
        &["13: admin.hosts: \"gate.example.no:9443\" is not a host name. Write it without a \
             scheme and a port, like \"gate.example.no\""],
    ),
    (
        "limits without sense",
        "[ledger]",
        "[limits]\nconnections = 100\nconnections_per_address = 50\nidle = \"0s\"\nexempt_networks \
         = [\"10.0.0.0/40\"]\n\n[ledger]",
        &[
            "38: limits.connections_per_address: one address may use at most a quarter of \
             limits.connections. Write 25 or less",
            "39: limits.idle: it must be longer than zero. Write a duration like \"15s\"",
            "40: limits.exempt_networks: \"10.0.0.0/40\" is no network. Write one like \
             \"10.0.0.0/8\" or \"2001:db8::/32\"",
        ],
    ),
    (
        "a policy of two lines",
        "to = \"{isbn}/{file}\"",
        "to = \"{isbn}/{file}\"\ncontent_security_policy = \"sandbox\\nx: y\"",
        &["48: routes[0].content_security_policy: a header cannot contain these characters. \
             Write one line, like \"sandbox allow-same-origin\""],
    ),
    (
        "a pseudonym key that is too short",
        "{ file = \"certs/pseudonym.key\" }",
        "\"short\"",
        &["16: privacy.pseudonym_key: the key has 5 bytes and needs 32. Make one with `openssl \
             rand -hex 32`"],
    ),
    (
        "no pseudonym key",
        "pseudonym_key = { file = \"certs/pseudonym.key\" }",
        "",
        &["15: privacy.pseudonym_key: it is missing. Write pseudonym_key = { file = \
             \"certs/pseudonym.key\" }"],
    ),
    (
        "an algorithm that is not allowed",
        "[\"EdDSA\"]",
        "[\"HS256\"]",
        &["21: readers.jwt.algorithms: \"HS256\" is not known. Write \"EdDSA\" or \"ES256\" or \
             \"RS256\""],
    ),
    (
        "no algorithm",
        "[\"EdDSA\"]",
        "[]",
        &["21: readers.jwt.algorithms: without an algorithm, no token is valid. Write [\"EdDSA\"]"],
    ),
    (
        "a key set without a key of the algorithm",
        "[\"EdDSA\"]",
        "[\"ES256\"]",
        &["20: readers.jwt.jwks: No key in the JWKS file certs/jwks.json fits the allowed \
             algorithms [ES256]: add one, or allow its algorithm."],
    ),
    (
        "a key set that is none",
        "jwks = \"certs/jwks.json\"",
        "jwks = \"certs/server.pem\"",
        &["20: readers.jwt.jwks: The file certs/server.pem is not a JWKS, which is JSON with a \
             list `keys`: line 1, column 2."],
    ),
    (
        "keys from an address without TLS",
        "jwks = \"certs/jwks.json\"",
        "jwks_url = \"http://login.example.no/jwks\"",
        &["20: readers.jwt.jwks_url: without TLS, others could send keys of their own. Write \
             https://"],
    ),
    (
        "keys from a file and an address",
        "jwks = \"certs/jwks.json\"",
        "jwks = \"certs/jwks.json\"\njwks_url = \"https://login.example.no/jwks\"",
        &["21: readers.jwt.jwks_url: jwks names a file with the keys already. Remove one of the \
             two"],
    ),
    (
        "an issuer without TLS whose keys are to be found",
        "jwks = \"certs/jwks.json\"\nalgorithms = [\"EdDSA\"]\nissuer = \"https:",
        "algorithms = [\"EdDSA\"]\nissuer = \"http:",
        &["21: readers.jwt.issuer: it is no https:// address, at which the keys could be found. \
             Write such an address, or jwks_url or jwks"],
    ),
    (
        "keys that are kept for too short and for too long a time",
        "audience = \"loangate\"",
        "audience = \"loangate\"\nkeep_keys = \"59s\"",
        &["24: readers.jwt.keep_keys: it is out of bounds. Write a time from \"1m\" to \"30d\""],
    ),
    (
        "a library of all tokens, and a claim and a table for it",
        "audience = \"loangate\"",
        "audience = \"loangate\"\nlibrary = \"NO-0301000\"\nlibraries = { a = \"NO-1\", b = \
         \"Oslo\" }\nclaims = { library = \"isil\" }\nborrowers = \"A b\"",
        &[
            "25: readers.jwt.libraries.b: \"Oslo\" is no ISIL. Write one like \"NO-0301000\"",
            "25: readers.jwt.libraries: library names the library of every token already. Remove \
             one of the two",
            "26: readers.jwt.claims.library: library names the library of every token already. \
             Remove one of the two",
            "27: readers.jwt.borrowers: \"A b\" is no name. Write up to 64 of a-z, 0-9 and -, such \
             as \"feide\"",
        ],
    ),
    (
        "one login service and several",
        "[readers.links]",
        "[[readers.issuers]]\nissuer = \"https://a\"\nalgorithms = [\"RS256\"]\naudience = \"b\"\n\
         borrowers = \"a\"\n\n[readers.links]",
        &["19: readers.jwt: [readers.jwt] is the form for one login service. Move it into \
             [[readers.issuers]], with borrowers = \"default\""],
    ),
    (
        "two login services of one issuer, one without its group of borrowers",
        "[readers.jwt]",
        "[[readers.issuers]]\nissuer = \"https://login.example.no\"\nalgorithms = [\"RS256\"]\n\
         audience = \"b\"\nborrowers = \"a\"\n\n[[readers.issuers]]",
        &[
            "25: readers.issuers[1].borrowers: it is missing. Write borrowers = \"default\" for \
             the login service that was in [readers.jwt], so that its borrowers stay who they are, \
             and a new name for each other one, so that the same id at two of them is two persons",
            "28: readers.issuers[1].issuer: another entry has this issuer. A token's issuer \
             chooses its entry, so write one entry for each",
        ],
    ),
    (
        "no login service in the list",
        "[readers.jwt]\njwks = \"certs/jwks.json\"\nalgorithms = [\"EdDSA\"]\nissuer = \
         \"https://login.example.no\"\naudience = \"loangate\"",
        "[readers]\nissuers = []",
        &["20: readers.issuers: this has 0 login services. Write 1 to 50"],
    ),
    (
        "two link keys of one name",
        "keys = [{ id = \"k1\", secret = { file = \"certs/link.key\" } }]",
        "keys = [{ id = \"k1\", secret = { file = \"certs/link.key\" } }, { id = \"k1\", secret = \
         { file = \"certs/link.key\" } }]",
        &["26: readers.links.keys[1].id: another key has this id. Give each its own"],
    ),
    (
        "a scheme that Bokbasen does not speak",
        "url = \"http://127.0.0.1:9100\"",
        "url = \"ftp://127.0.0.1:9100\"",
        &["29: lending.url: this version does not support ftp. Write a URL that starts with \
             https:// or http://"],
    ),
    (
        "a secret in the clear",
        "token_url = \"http://127.0.0.1:9100/oauth/token\"",
        "token_url = \"http://auth.example.no/oauth/token\"",
        &["31: lending.token_url: a secret would be sent in the clear. Write https://"],
    ),
    (
        "a login of no kind",
        "auth = \"oauth\"",
        "auth = \"basic\"",
        &["30: lending.auth: \"basic\" is not known. Write \"oauth\" or \"ticket\""],
    ),
    (
        "a login without its name",
        "auth = \"oauth\"",
        "auth = \"ticket\"",
        &[
            "28: lending.login_url: it is missing. Write login_url = \
             \"https://login.boknett.no/v1/tickets\"",
            "28: lending.username: it is missing. Write the username that Bokbasen gave you",
            "28: lending.password: it is missing. Write password = { env = \"BOKBASEN_PASSWORD\" }",
            "31: lending.token_url: auth = \"ticket\" has no such key. Remove it, or write auth = \
             \"oauth\"",
            "32: lending.audience: auth = \"ticket\" has no such key. Remove it, or write auth = \
             \"oauth\"",
            "33: lending.client_id: auth = \"ticket\" has no such key. Remove it, or write auth = \
             \"oauth\"",
            "34: lending.client_secret: auth = \"ticket\" has no such key. Remove it, or write \
             auth = \"oauth\"",
        ],
    ),
    (
        "a settle time that is too short",
        "url = \"http://127.0.0.1:9100\"",
        "url = \"https://api.loan.boknett.no\"\nsettle = \"5s\"",
        &["30: lending.settle: a begin can need 22s to take effect and be listed. With less \
             time, a loan could be registered twice. Write \"30s\""],
    ),
    (
        "licences of a library that is none, and a type that is none",
        "[ledger]",
        "[licences]\norder = [\"pay per loan\"]\nnever = { \"Deichman\" = [\"PACKAGE\"], \"NO-1\" \
         = \"PACKAGE\" }\n\n[ledger]",
        &[
            "37: licences.order: \"pay per loan\" is not a licence type. Write it as Bokbasen \
             does, like \"PAY_PER_LOAN\"",
            "38: licences.never.NO-1: this is a string. Write a list: [ … ]",
            "38: licences.never.Deichman: this is no library: an ISIL is a prefix, a hyphen and an \
             identifier, like NO-0301000",
        ],
    ),
    (
        "a borrower who is forgotten before a token is",
        "pseudonym_key = { file = \"certs/pseudonym.key\" }",
        "pseudonym_key = { file = \"certs/pseudonym.key\" }\nretention = \"90d\"",
        &["17: privacy.retention: a token or a link may live for 365 days. An old one could \
             begin a new loan once its borrower is erased. Write a longer time here, or a shorter \
             max_lifetime in [readers]"],
    ),
    (
        "pages of origins that browsers do not write so",
        "[ledger]",
        "[cors]\norigins = [\"https://reader.example.no/\"]\n\n[ledger]",
        &["37: cors.origins: \"https://reader.example.no/\" is no origin of a web page or an \
             app. Write it as browsers send it, like \"https://reader.example.no\" or \
             \"capacitor://localhost\": lower case, no path, no default port"],
    ),
    (
        "an address of another machine",
        "\"127.0.0.1:8443\"",
        "\"192.0.2.7:8443\"",
        &["4: listen.public: this machine does not have the address 192.0.2.7. Write one of its \
             own, or 0.0.0.0"],
    ),
    (
        "a second address of another machine",
        "\"127.0.0.1:8443\"",
        "[\"127.0.0.1:8443\", \"[2001:db8::7]:8443\"]",
        &["4: listen.public: this machine does not have the address 2001:db8::7. Write one of \
             its own, or [::]"],
    ),
    (
        "a certificate and a key that are exchanged",
        "certificate = \"certs/server.pem\"\nkey = \"certs/server.key\"",
        "certificate = \"certs/server.key\"\nkey = \"certs/server.pem\"",
        &[
            "8: tls.certificate: certs/server.key cannot be read as PEM: there is no certificate \
             in it: it has a private key; are certificate and key exchanged?",
            "9: tls.key: other users can read or change certs/server.pem (mode 644). Allow only \
             its owner: chmod 600 certs/server.pem",
        ],
    ),
    (
        "all web pages",
        "[ledger]",
        "[cors]\norigins = [\"*\"]\n\n[ledger]",
        &["37: cors.origins: with * any web page could send requests with a token that it got \
             hold of, and read the files. Name the pages' origins, like \
             \"https://reader.example.no\", or one label of your own domain, \
             \"https://*.example.no\""],
    ),
    (
        "all web pages of a country",
        "[ledger]",
        "[cors]\norigins = [\"https://*.no\"]\n\n[ledger]",
        &["37: cors.origins: \"https://*.no\" would allow everyone who has a name there. Write \
             it as one whole label in front of your own domain: \"https://*.example.no\""],
    ),
    (
        "a ledger below a file",
        "sqlite:data/loangate.db",
        "sqlite:certs/server.pem/loangate.db",
        &["37: ledger.url: the ledger file certs/server.pem/loangate.db cannot be used: Not a \
             directory (os error 20); check its directory and its owner"],
    ),
    (
        "a ledger that is a directory",
        "sqlite:data/loangate.db",
        "sqlite:certs",
        &["37: ledger.url: the ledger file certs cannot be used: it is a directory, not a file; \
             check its directory and its owner"],
    ),
    (
        "a ledger where nothing can be made",
        "sqlite:data/loangate.db",
        "sqlite:/proc/loangate/loangate.db",
        &["37: ledger.url: the ledger file /proc/loangate/loangate.db cannot be used: nothing \
             can be written in the directory /proc: No such file or directory (os error 2); check \
             its directory and its owner"],
    ),
    (
        "a ledger that is another file",
        "sqlite:data/loangate.db",
        "sqlite:certs/server.pem",
        &["37: ledger.url: the ledger certs/server.pem failed: error returned from database: \
             (code: 26) file is not a database; check the path. If the file is damaged, which \
             `loangate ledger check` finds, restore a backup with `loangate ledger restore`"],
    ),
    (
        "a timeout without a unit",
        "auth = \"oauth\"",
        "auth = \"oauth\"\ntimeout = \"10\"",
        &["31: lending.timeout: \"10\" is not a duration. Write one like \"15s\", \"10m\" or \
             \"400d\""],
    ),
    (
        "a timeout of nothing",
        "auth = \"oauth\"",
        "auth = \"oauth\"\ntimeout = \"0s\"",
        &["31: lending.timeout: it must be longer than zero. Write a duration like \"15s\""],
    ),
    (
        "more calls than allowed",
        "auth = \"oauth\"",
        "auth = \"oauth\"\nconcurrency = 0",
        &["31: lending.concurrency: 0 is out of bounds. Write a number from 8 to 1000"],
    ),
    (
        "no flight allowed",
        "auth = \"oauth\"",
        "auth = \"oauth\"\nflights = 0",
        &["31: lending.flights: 0 is out of bounds. Write a number from 1 to 1000000"],
    ),
    (
        "a ledger in memory",
        "sqlite:data/loangate.db",
        "sqlite::memory:",
        &["37: ledger.url: a ledger needs a file, so that it outlives the process. Write \
             \"sqlite:data/loangate.db\""],
    ),
    (
        "a ledger of another kind",
        "sqlite:data/loangate.db",
        "mysql://u:secret@db/loans",
        &["37: ledger.url: it names neither SQLite nor PostgreSQL. Write \
             \"sqlite:data/loangate.db\" or \"postgres://loangate@db.example.no/loangate\""],
    ),
    (
        "a database without a user",
        "url = \"sqlite:data/loangate.db\"",
        "url = \"postgres://db/loans\"",
        &["37: ledger.url: it names no user. Write \
             \"postgres://loangate@db.example.no/loangate\", or set PGUSER before the start"],
    ),
    (
        "a database in the clear, with its password",
        "url = \"sqlite:data/loangate.db\"",
        "url = \"postgres://u:secret@10.0.0.1/loans?sslmode=disable\"",
        &["37: ledger.url: sslmode=disable would send passwords and loans to 10.0.0.1 in the \
             clear. Remove it; only connections within this machine may be without TLS"],
    ),
    (
        "a database with few connections and a listener without a scheme",
        "url = \"sqlite:data/loangate.db\"",
        "url = \"postgres://u@localhost/loans\"\nconnections = 7\ndirect_url = \"on\"",
        &[
            "38: ledger.connections: 7 is out of bounds. Write a number from 8 to 1000",
            "39: ledger.direct_url: it does not start with postgres://. Write \
             \"postgres://loangate@db.example.no/loangate\"",
        ],
    ),
    (
        "keys of a database with a file",
        "url = \"sqlite:data/loangate.db\"",
        "url = \"sqlite:data/loangate.db\"\nlease = \"30s\"",
        &["38: ledger.lease: only a ledger in PostgreSQL has this key. Remove it"],
    ),
    (
        "an origin of another kind",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"ftp://books\"",
        &["42: origins[0].url: an origin cannot use ftp. Write an address that starts with \
             https://, http://, s3://, gs://, az:// or file:"],
    ),
    (
        "an origin with a password",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"http://a:b@127.0.0.1:9000/\"",
        &["42: origins[0].url: a URL must not contain a user or a password. Remove them"],
    ),
    (
        "an origin with several addresses and one",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"http://127.0.0.1:9000/\"\nurls = [\"http://127.0.0.1:9001/\"]",
        &["42: origins[0].url: urls is set too. Keep one of the two"],
    ),
    (
        "a bucket of no name",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"s3://\"",
        &["42: origins[0].url: this names no bucket. Write it like \"s3://books/path\""],
    ),
    (
        "half a key of S3, and a table for nothing",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"s3://books\"\ns3 = { access_key_id = \"a\" }\nazure = { account = \"b\" }",
        &[
            "43: origins[0].s3.access_key_id: its secret is missing. Write secret_access_key = { \
             file = \"certs/s3.key\" }",
            "44: origins[0].azure: no address of this origin starts with az://. Remove the table",
        ],
    ),
    (
        "a container without an account",
        "url = \"http://127.0.0.1:9000/\"",
        "url = \"az://books\"",
        &["40: origins[0].azure.account: it is missing. Write account = \"books\""],
    ),
    (
        "a route to an origin that does not exist",
        "origin = \"files\"\nto = \"{isbn}/{file}\"",
        "origin = \"fils\"\nto = \"{isbn}/{file}\"",
        &["46: routes[0].origin: there is no origin named fils. Write one of: files"],
    ),
    (
        "a gated route without its title",
        "path = \"/files/{isbn}/{*file}\"",
        "path = \"/files/{*file}\"",
        &[
            "45: routes[0].path: a gated route needs {isbn}, which names the title, or a table of \
             titles. Add one, or write open = true",
            "47: routes[0].to: {isbn} is not in the route's path. Write a name that is",
        ],
    ),
    (
        "a grace of links without end",
        "[readers.links]",
        "[readers.links]\nresume_grace = \"30d\"",
        &["26: readers.links.resume_grace: it is longer than a day. Write a shorter time, and \
             mint links that live longer"],
    ),
    (
        "a disposition that is none",
        "to = \"{isbn}/{file}\"",
        "to = \"{isbn}/{file}\"\ndisposition = \"download\"",
        &["48: routes[0].disposition: \"download\" is not known. Write \"attachment\" or \
             \"inline\""],
    ),
    (
        "a table of titles that is not there",
        "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
        "path = \"/files/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = { table = \
         \"titles.csv\" }",
        &["48: routes[0].title.table: the table titles.csv cannot be read: No such file or \
             directory (os error 2). Make it, or name another"],
    ),
    (
        "a title by table and by path",
        "to = \"{isbn}/{file}\"",
        "to = \"{isbn}/{file}\"\ntitle = { table = \"titles.csv\" }",
        &["48: routes[0].title: the path names the title already, by {isbn}. Take one of the two \
             out"],
    ),
    (
        "a title that is no table",
        "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
        "path = \"/files/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = \"titles.csv\"",
        &["48: routes[0].title: this is a string. Write a table: [routes[0].title]"],
    ),
    (
        "a title without its table",
        "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
        "path = \"/files/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = { tabel = \
         \"titles.csv\" }",
        &[
            "48: routes[0].title.table: it is missing. Write title = { table = \"titles.csv\" }",
            "48: routes[0].title.tabel: there is no such key. Write table",
        ],
    ),
    (
        "a route into the gate's own paths",
        "path = \"/files/{isbn}/{*file}\"",
        "path = \"/loans/{isbn}/{*file}\"",
        &["45: routes[0].path: /loans and /~ belong to the gate itself. Choose another first \
             segment"],
    ),
    (
        "an open route to gated files",
        "to = \"covers/{file}\"",
        "to = \"{file}\"",
        &["52: routes[1].to: this open route can lead to files of /files/{isbn}/{*file}, which \
             need a loan. Give open files a folder of their own. The other route starts in line \
             44"],
    ),
    (
        "an open route that registers",
        "open = true",
        "open = true\nregistration = \"explicit\"",
        &["54: routes[1].registration: an open route registers no loan. Remove it, or write open \
             = false"],
    ),
    (
        "a truth in quotes",
        "open = true",
        "open = \"true\"",
        &["53: routes[1].open: this is a string. Write true or false, without quotes"],
    ),
    (
        "no route at all",
        "[[routes]]\npath = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"\n\
         \n[[routes]]\npath = \"/covers/{*file}\"\norigin = \"files\"\nto = \"covers/{file}\"\n\
         open = true",
        "",
        &["1: routes: it is missing. Write [[routes]] with path, origin and to"],
    ),
    (
        "a size without sense",
        "[ledger]",
        "[server]\nbuffers = \"much\"\n\n[ledger]",
        &["37: server.buffers: \"much\" is not a size. Write one like \"64KiB\" or \"256MiB\""],
    ),
    (
        "a brake without a limit",
        "[ledger]",
        "[brake]\nmode = \"enforce\"\n\n[ledger]",
        &["37: brake.mode: a brake without a limit stops nothing. Write library_per_hour = 500, \
             or mode = \"off\""],
    ),
    (
        "a level that is none",
        "[ledger]",
        "[log]\nlevel = \"loud\"\n\n[ledger]",
        &["37: log.level: \"loud\" is not known. Write \"error\" or \"warn\" or \"info\" or \
             \"debug\" or \"trace\""],
    ),
    (
        "an access log that cannot be",
        "[ledger]",
        "[access_log]\nto = \"stdot\"\nstatuses = [\"6xx\"]\nsample = 2\n\n[ledger]",
        &[
            "37: access_log.to: \"stdot\" is not known. Write \"log\", \"off\", \"stdout\", \
             \"syslog\", or a path with a slash, such as \"./access.log\"",
            "38: access_log.statuses: \"6xx\" is not known. Write \"1xx\" or \"2xx\" or \"3xx\" or \
             \"4xx\" or \"5xx\"",
            "39: access_log.sample: 2 is no share. Write a number from 0 to 1, like 0.01",
        ],
    ),
    (
        "fields of an access log that is not one of its own",
        "[ledger]",
        "[access_log]\nfields = [\"id\", \"id\"]\n\n[ledger]",
        &[
            "37: access_log.fields: it has no effect without an access log of its own. Write to = \
             \"stdout\", \"syslog\" or a path, or remove it",
            "37: access_log.fields: a field is listed twice. Remove one",
        ],
    ),
    (
        "an access log in a directory that is not there",
        "[ledger]",
        "[access_log]\nto = \"none/access.log\"\n\n[ledger]",
        &["37: access_log.to: cannot open none/access.log for the access log: No such file or \
             directory (os error 2)"],
    ),
    #[cfg(feature = "otlp")]
    (
        "an export without an endpoint",
        "[ledger]",
        "[otlp]\nsampel = 0.1\n\n[ledger]",
        &[
            "36: otlp.endpoint: it is missing. Write endpoint = \
             \"https://collector.example.no:4318\"",
            "37: otlp.sampel: there is no such key. Write sample",
        ],
    ),
    #[cfg(feature = "otlp")]
    (
        "an export with wrong values",
        "[ledger]",
        "[otlp]\nendpoint = \"https://collector.example.no\"\nca = \"certs/jwks.json\"\n\
         sample = 1.5\nlogs = \"yes\"\ntrust_parent = [\"0.0.0.0/0\"]\ninterval = \"0s\"\n\
         resource = { a = 1 }\n\
         headers = [{ name = \"content-type\", value = { file = \"certs/admin.token\" } }]\n\n\
         [ledger]",
        &[
            "38: otlp.ca: the file certs/jwks.json has no certificate in PEM. Name another",
            "39: otlp.sample: 1.5 is no share. Write a number from 0 to 1, like 0.01",
            "40: otlp.logs: this is a string. Write true or false, without quotes",
            "41: otlp.trust_parent: 0.0.0.0/0 has every address, so each client could claim to be \
             another. Write the networks of the proxies",
            "42: otlp.interval: it must be longer than zero. Write a duration like \"15s\"",
            "43: otlp.resource.a: this is a number. Write a string like \"…\"",
            "44: otlp.headers[0].name: \"content-type\" is no header that can be added. Write \
             one like \"authorization\"",
        ],
    ),
    #[cfg(feature = "otlp")]
    (
        "an export of secrets in the clear",
        "[ledger]",
        "[otlp]\nendpoint = \"http://collector.example.no\"\n\
         headers = [{ name = \"x-key\", value = { file = \"certs/admin.token\" } }]\n\n[ledger]",
        &["37: otlp.endpoint: the secret headers would be sent in the clear. Write https://"],
    ),
    #[cfg(not(feature = "otlp"))]
    (
        "an export by a program without it",
        "[ledger]",
        "[otlp]\nendpoint = \"http://127.0.0.1:4318\"\n\n[ledger]",
        &["37: otlp.endpoint: this program was built without the feature otlp. Remove the table, \
             or use a program that was built with it"],
    ),
];

#[test]
fn every_mistake_is_reported_with_its_line() {
    let directory = initialised();
    for (name, from, to, expected) in CASES {
        assert!(GOOD.contains(from), "{name}");
        let (good, _, errors) = check(directory.path(), &GOOD.replacen(from, to, 1));
        let found: Vec<&str> =
            errors.lines().map(|line| line.strip_prefix("case.toml:").unwrap_or(line)).collect();
        assert!(!good, "{name}");
        assert_eq!(found, *expected, "{name}");
    }
}

#[test]
fn every_mistake_in_a_title_table_is_reported_with_its_line() {
    let directory = initialised();
    let text = GOOD.replace(
        "path = \"/files/{isbn}/{*file}\"\norigin = \"files\"\nto = \"{isbn}/{file}\"",
        "path = \"/files/{*file}\"\norigin = \"files\"\nto = \"m/{file}\"\ntitle = { table = \
         \"titles.csv\" }",
    );
    let table = |rows: &str| fs::write(directory.path().join("titles.csv"), rows).unwrap();
    table("path,isbn\nlyd/12/,9788299999038\nlyd/13.mp3,9788299999014,9788299999038\n");
    assert!(check(directory.path(), &text).0);
    table(
        "# ours\nlyd/12/,9788299999039\n\nlyd/12/,9788299999038\nb%C3%B8k,9788299999038\n\
         lyd/12/,9788299999014\nx\n",
    );
    let (good, _, errors) =
        check(directory.path(), &text.replace("certs/server.key", "certs/jwks.json"));
    assert!(!good);
    assert_eq!(
        errors.lines().collect::<Vec<_>>(),
        [
            "case.toml:9: tls.key: certs/jwks.json cannot be read as PEM: there is no private key \
             in it",
            "case.toml:9: tls.key: other users can read or change certs/jwks.json (mode 644). \
             Allow only its owner: chmod 600 certs/jwks.json",
            "titles.csv:2: \"9788299999039\" is no title: the check digit of the ISBN is wrong",
            "titles.csv:5: no request has such a path, which is written decoded. The path is \
             percent-encoded twice. Encode it once.",
            "titles.csv:6: line 4 has this path already. Write all its ISBNs in one line",
            "titles.csv:7: there is no ISBN. Write the path, a comma, and the ISBNs with commas \
             between",
        ]
    );
    // A gate does not start with these mistakes either.
    let output = loangate(&["serve", "--config", "case.toml"], directory.path());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && errors.contains("titles.csv:5: no request has such a path"),
        "{errors}"
    );
}

#[test]
fn every_mistake_about_reports_is_listed() {
    let directory = initialised();
    let text = |keys: &str| GOOD.replace("[ledger]", &format!("[reports]\n{keys}\n\n[ledger]"));
    let (good, _, errors) = check(directory.path(), &text("enabled = true\nread = 0"));
    assert!(!good);
    for expected in ["36: reports.url: it is missing", "36: reports.since: it is missing"] {
        assert!(errors.contains(expected), "{errors}");
    }
    assert!(errors.contains("38: reports.read: write the percentage of a title"), "{errors}");
    for (url, is_short) in [("https://api.bokbasen.io", true), ("http://127.0.0.1:9", false)] {
        let keys = format!("url = \"{url}\"\nsince = \"2026-10-01\"\ninterval = \"29s\"");
        let (good, _, errors) = check(directory.path(), &text(&keys));
        let short = "39: reports.interval: it is shorter than 30 s. Write one like \"5m\"";
        assert_eq!((good, errors.contains(short)), (!is_short, is_short), "{url}: {errors}");
    }
    let keys = "enabled = true\nurl = \"https://api.bokbasen.io\"\nsince = \"2026-10-01\"\n\
                prices = \"prices.csv\"\nsizes = \"sizes.csv\"";
    let (_, _, errors) = check(directory.path(), &text(keys));
    assert!(errors.contains("reports.prices: the list prices.csv cannot be read"), "{errors}");
    fs::write(directory.path().join("prices.csv"), "PACKAGE,29\nPAY_PER_LOAN,-1\n").unwrap();
    fs::write(directory.path().join("sizes.csv"), "# bytes\n9788299999014,many\n").unwrap();
    let (good, _, errors) = check(directory.path(), &text(keys));
    assert!(!good);
    for expected in ["prices.csv:2: \"-1\" is no price", "sizes.csv:2: \"many\" is no size"] {
        assert!(errors.contains(expected), "{errors}");
    }
    fs::write(directory.path().join("prices.csv"), "PAY_PER_LOAN,23.50\n").unwrap();
    fs::write(directory.path().join("sizes.csv"), "9788299999014,734003\n").unwrap();
    let (good, said, errors) = check(directory.path(), &text(keys));
    assert!(good, "{said} {errors}");
}

#[test]
fn every_secret_file_must_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = initialised();
    let files =
        ["server.key", "ticket.key", "admin.token", "pseudonym.key", "link.key", "lending.secret"];
    for (name, mode) in files.iter().zip([0o644, 0o641, 0o604, 0o620, 0o660, 0o601]) {
        let file = directory.path().join("certs").join(name);
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let (good, _, errors) = check(directory.path(), GOOD);
    assert!(!good);
    let keys: Vec<&str> = errors.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(
        keys,
        [
            "tls.key",
            "tls.ticket_keys",
            "admin.token",
            "privacy.pseudonym_key",
            "readers.links.keys[0].secret",
            "lending.client_secret"
        ]
    );
    assert!(errors.contains(
        "case.toml:13: admin.token: other users can read or change certs/admin.token (mode 604)"
    ));
    // A gate starts nevertheless: a file mode must not cause an outage.
    assert!(loangate::config::load(&directory.path().join("case.toml")).is_ok());
}

#[test]
fn all_mistakes_are_listed() {
    let directory = initialised();
    let text = GOOD
        .replace("\"127.0.0.1:8443\"", "8443")
        .replace("auth = \"oauth\"", "auth = \"ouath\"")
        .replace("origin = \"files\"\nto = \"covers", "origin = \"elsewhere\"\nto = \"covers");
    let (good, _, errors) = check(directory.path(), &text);
    let lines: Vec<&str> = errors.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert!(!good);
    assert_eq!(lines, ["listen.public", "lending.auth", "routes[1].origin"]);
}
