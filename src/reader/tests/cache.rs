//! The cache of verified credentials, reloads, and output that must contain no secret.

use super::*;

fn token() -> String {
    LOGIN.ed.sign(&claims(json!({})))
}

#[test]
fn verified_token_is_cached_until_it_expires() {
    let gate = Gate::start();
    let token = token();
    let first = gate.bearer(&token).unwrap();
    gate.clock.set(at(NOW + 3600 + 59));
    assert!(Arc::ptr_eq(&first, &gate.bearer(&token).unwrap()));
    gate.clock.advance(Duration::from_secs(1));
    assert!(unauthenticated(gate.bearer(&token)).contains("expired"));
    assert_eq!(gate.readers.cached_count(), 0);
}

#[test]
fn verified_link_is_cached_for_query_and_path() {
    let gate = Gate::start();
    let link = gate.link(&Scope::Title("9780306406157".parse().unwrap()));
    let first = gate.path(&link).unwrap();
    let again = gate.query(&format!("token={link}")).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(gate.readers.cached_count(), 1);
}

#[test]
fn reload_drops_credentials_of_old_keys() {
    let gate = Gate::start();
    let token = token();
    let first = gate.bearer(&token).unwrap();
    gate.reload().unwrap();
    let second = gate.bearer(&token).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));

    let file = gate.dir.path().join("jwks.json");
    std::fs::write(&file, "broken").unwrap();
    assert!(gate.reload().is_err());
    assert!(Arc::ptr_eq(&second, &gate.bearer(&token).unwrap()), "the error changed nothing");

    let others = json!({"keys": [LOGIN.stranger.jwk]});
    std::fs::write(&file, others.to_string()).unwrap();
    gate.reload().unwrap();
    assert!(unauthenticated(gate.bearer(&token)).contains("signature"));
    let strangers = LOGIN.stranger.sign(&claims(json!({})));
    assert!(gate.bearer(&strangers).is_ok());
}

#[test]
fn reload_never_changes_the_pseudonym_key() {
    let mut gate = Gate::start();
    gate.settings.pseudonym_key = SecretString::from("another pseudonym key of more than 32 bytes");
    let errors = gate.reload().unwrap_err();
    assert!(errors[0].to_string().contains("pseudonym key has changed"));
}

#[test]
fn pseudonyms_differ_by_library_borrower_and_key() {
    let mut gate = Gate::start();
    let here =
        |gate: &Gate, library: &str, id: &str| gate.readers.pseudonym(library.parse().unwrap(), id);
    let kari = here(&gate, "NO-0301000", BORROWER);
    let print = gate.readers.key_fingerprint();
    assert_eq!(kari, here(&gate, "NO-0301000", BORROWER));
    assert_ne!(kari, here(&gate, "NO-0301001", BORROWER));
    assert_ne!(kari, here(&gate, "NO-0301000", "ola"));
    assert_ne!(here(&gate, "NO-1", "23"), here(&gate, "NO-12", "3"));
    assert_eq!(print, gate.readers.key_fingerprint());
    assert_ne!(print[..16], kari.as_bytes()[..]);

    gate.settings.pseudonym_key = SecretString::from("another pseudonym key of more than 32 bytes");
    gate.restart();
    assert_ne!(kari, here(&gate, "NO-0301000", BORROWER));
    assert_ne!(print, gate.readers.key_fingerprint());
}

#[test]
fn debug_output_has_no_secret_and_no_borrower() {
    let gate = Gate::start();
    let token = token();
    let reader = gate.bearer(&token).unwrap();
    let link = gate.link(&Scope::Title("9780306406157".parse().unwrap()));
    let pseudonym = reader.borrower.to_string();
    let forged = LOGIN.stranger.sign(&claims(json!({})));
    let misplaced = LOGIN.ed.sign(&claims(json!({"library": BORROWER})));
    let printed = [
        format!("{:?}", gate.readers),
        format!("{:?}", gate.settings),
        format!("{reader:?}"),
        format!("{:?}", gate.path(&link)),
        format!("{:?}", gate.bearer(&forged)),
        format!("{:?}", gate.bearer(&misplaced)),
    ]
    .concat();
    for secret in [
        BORROWER,
        PSEUDONYM_KEY,
        LINK_KEY,
        &token,
        &forged,
        &link,
        &pseudonym,
        LOGIN.ed.jwk["x"].as_str().unwrap(),
    ] {
        assert!(!printed.contains(secret), "{secret}");
    }
}
