//! Errors in keys and secrets: every mistake has a sentence, and no sentence contains a key.

use super::*;

fn refused(settings: &Settings) -> String {
    let clock = Clock::movable(at(NOW));
    let ReadersError(sentence) = Readers::new(settings, clock).unwrap_err();
    assert!(sentence.ends_with('.'), "{sentence}");
    sentence
}

#[test]
fn jwks_without_usable_key_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (ed, ec, rsa) = (&LOGIN.ed.jwk, &LOGIN.ec.jwk, &LOGIN.rsa.jwk);
    let changed = |jwk: &Value, name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };
    let only = |jwk: &Value, name: &str, value: Value| json!({"keys": [changed(jwk, name, value)]});
    let second =
        |jwk: &Value, name: &str, value: Value| json!({"keys": [ed, changed(jwk, name, value)]});
    let small = "AQAB".repeat(30);
    for (jwks, words) in [
        (json!([]), "not a JWKS"),
        (json!({}), "not a JWKS"),
        (json!({"keys": []}), "No key"),
        (json!({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}), "No key"),
        (only(ed, "use", json!("enc")), "No key"),
        (only(ed, "alg", json!("ES256")), "No key"),
        (only(ed, "crv", json!("Ed448")), "No key"),
        (only(ec, "crv", json!("P-384")), "No key"),
        (only(ec, "alg", json!("ES384")), "No key"),
        (only(rsa, "alg", json!("RS512")), "No key"),
        (only(rsa, "key_ops", json!(["encrypt"])), "No key"),
        (second(ed, "x", json!("AQAB")), "Key number 2"),
        (second(ed, "x", json!("not base64!")), "Key number 2"),
        (second(ec, "y", ec["x"].clone()), "Key number 2"),
        (second(ec, "x", json!("AQAB")), "Key number 2"),
        (second(rsa, "n", json!(small)), "Key number 2"),
        (second(rsa, "e", json!("")), "Key number 2"),
    ] {
        let sentence = refused(&settings(&dir, &jwks));
        assert!(sentence.contains(words), "{jwks}: {sentence}");
        assert!(sentence.contains("jwks.json"), "{sentence}");
    }
}

#[test]
fn missing_or_huge_jwks_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(&dir, &json!({"keys": []}));
    std::fs::write(dir.path().join("jwks.json"), vec![b' '; 1024 * 1024 + 1]).unwrap();
    assert!(refused(&settings).contains("1 MiB"));
    settings.issuers[0].keys = KeySource::File(dir.path().join("nothing"));
    assert!(refused(&settings).contains("cannot be read"));
}

#[test]
fn keys_of_other_algorithms_are_ignored() {
    let mut gate = Gate::start();
    gate.settings.issuers[0].algorithms = vec![Algorithm::ES256];
    gate.restart();
    assert!(gate.bearer(&LOGIN.ec.sign(&claims(json!({})))).is_ok());
    for signer in [&LOGIN.ed, &LOGIN.rsa] {
        assert!(
            unauthenticated(gate.bearer(&signer.sign(&claims(json!({}))))).contains("algorithm")
        );
    }
}

#[test]
fn two_keys_may_share_a_kid_during_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&dir, &json!({"keys": [LOGIN.stranger.jwk, LOGIN.ed.jwk]}));
    let readers = Readers::new(&settings, Clock::movable(at(NOW))).unwrap();
    for signer in [&LOGIN.ed, &LOGIN.stranger] {
        let headers = authorization(&signer.sign(&claims(json!({}))));
        assert!(readers.authenticate(&headers, None, None).is_ok());
    }
}

#[test]
fn short_secrets_and_duplicate_ids_are_rejected() {
    let gate = Gate::start();
    let long = "x".repeat(32);
    let short = "x".repeat(31);
    let with_links = |link_keys| Settings { link_keys, ..gate.settings.clone() };
    let with_pseudonym_key =
        Settings { pseudonym_key: SecretString::from(short.clone()), ..gate.settings.clone() };
    for (settings, words) in [
        (with_pseudonym_key, "pseudonym key has 31 bytes"),
        (with_links(vec![link_key("k1", &short)]), "\"k1\" has 31 bytes"),
        (with_links(vec![link_key("k1", &long), link_key("k1", &long)]), "Two link keys"),
        (with_links(vec![link_key("", &long)]), "id of a link key"),
        (with_links(vec![link_key("a b", &long)]), "id of a link key"),
        (with_links(vec![link_key(&"k".repeat(65), &long)]), "id of a link key"),
    ] {
        let sentence = refused(&settings);
        assert!(sentence.contains(words), "{sentence}");
        assert!(!sentence.contains(&short), "{sentence}");
    }
}
