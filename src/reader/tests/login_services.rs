//! Several login services: each has its own keys, algorithms, audience, claims and borrowers.

use std::collections::BTreeMap;

use super::*;

const OTHER: &str = "https://other.example.no/realms/library";

impl Gate {
    /// Adds a login service with the EC key, and changes it.
    fn add_service(&mut self, change: impl FnOnce(&mut JwtSettings)) {
        let file = self.dir.path().join("other.json");
        std::fs::write(&file, json!({"keys": [LOGIN.ec.jwk]}).to_string()).unwrap();
        let mut service = JwtSettings {
            keys: KeySource::File(file),
            algorithms: vec![Algorithm::ES256],
            issuer: OTHER.to_owned(),
            audience: "books".to_owned(),
            ..self.settings.issuers[0].clone()
        };
        change(&mut service);
        self.settings.issuers.push(service);
        self.settings.issuers[0].algorithms = vec![Algorithm::EdDSA];
        self.restart();
    }
}

fn others(changes: Value) -> Value {
    let mut all = claims(json!({"iss": OTHER, "aud": "books"}));
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    all
}

#[test]
fn issuer_chooses_keys_algorithms_and_audience() {
    let mut gate = Gate::start();
    gate.add_service(|_| {});
    assert!(gate.bearer(&LOGIN.ed.sign(&claims(json!({})))).is_ok());
    assert!(gate.bearer(&LOGIN.ec.sign(&others(json!({})))).is_ok());
    for (token, words) in [
        (LOGIN.ec.sign(&claims(json!({}))), "algorithm"),
        (LOGIN.ed.sign(&others(json!({}))), "algorithm"),
        (LOGIN.ec.sign(&others(json!({"aud": "loangate"}))), "another service"),
        (LOGIN.ec.sign(&others(json!({"iss": format!("{OTHER}/")}))), "another issuer"),
        (LOGIN.ec.sign(&others(json!({"iss": [OTHER]}))), "another issuer"),
        (LOGIN.ec.sign(&others(json!({"iss": null}))), "another issuer"),
    ] {
        let sentence = unauthenticated(gate.bearer(&token));
        assert!(sentence.contains(words), "{sentence}");
    }
    // Both accept the algorithm now, and each its own keys only.
    gate.settings.issuers[0].algorithms.push(Algorithm::ES256);
    let only_ed = json!({"keys": [LOGIN.ed.jwk]});
    std::fs::write(gate.dir.path().join("jwks.json"), only_ed.to_string()).unwrap();
    gate.restart();
    let forged = LOGIN.ec.sign(&claims(json!({})));
    assert!(unauthenticated(gate.bearer(&forged)).contains("a key that is not known"));
}

#[test]
fn library_is_fixed_nested_or_listed() {
    let mut gate = Gate::start();
    gate.add_service(|service| service.library = LibraryRule::Fixed("NO-1".parse().unwrap()));
    let library = |gate: &Gate, changes: Value| {
        gate.bearer(&LOGIN.ec.sign(&others(changes))).map(|reader| reader.library.to_string())
    };
    let wrong = json!({"library": "NO-0301000"});
    assert_eq!(library(&gate, wrong).unwrap(), "NO-1");

    let service = |gate: &mut Gate, rule| gate.settings.issuers[1].library = rule;
    service(&mut gate, LibraryRule::Claim("realm_access.library".to_owned()));
    gate.restart();
    assert_eq!(library(&gate, json!({"realm_access": {"library": "NO-2"}})).unwrap(), "NO-2");
    assert!(unauthenticated(library(&gate, json!({}))).contains("by an ISIL"));

    let listed = BTreeMap::from([("oslo".to_owned(), "NO-3".parse().unwrap())]);
    service(&mut gate, LibraryRule::Table("realm_access.city".to_owned(), listed));
    gate.restart();
    let city = |city: Value| json!({"realm_access": {"city": city}});
    assert_eq!(library(&gate, city(json!("oslo"))).unwrap(), "NO-3");
    for unlisted in ["Oslo", "bergen", "NO-3", ""] {
        let sentence = unauthenticated(library(&gate, city(json!(unlisted))));
        assert!(sentence.contains("does not serve"), "{unlisted}: {sentence}");
    }
    assert!(unauthenticated(library(&gate, city(json!(7)))).contains("by an ISIL"));
}

#[test]
fn same_id_is_one_person_only_within_a_group() {
    let mut gate = Gate::start();
    let default = gate.readers.pseudonym(library(), BORROWER);
    // Computed by another program: an existing ledger must never lose its borrowers.
    assert_eq!(data_encoding::HEXLOWER.encode(default.as_bytes()), DEFAULT_PSEUDONYM);
    gate.add_service(|service| service.borrower_group = Some("feide".to_owned()));
    let first = gate.bearer(&LOGIN.ed.sign(&claims(json!({})))).unwrap();
    let second = gate.bearer(&LOGIN.ec.sign(&others(json!({})))).unwrap();
    assert_eq!((first.borrower, first.library), (default, second.library));
    assert_eq!(data_encoding::HEXLOWER.encode(second.borrower.as_bytes()), PSEUDONYM_OF_FEIDE);

    let looked_up = |gate: &Gate, text: &str| gate.readers.pseudonym_to_look_up(library(), text);
    assert_eq!(looked_up(&gate, BORROWER), default);
    assert_eq!(looked_up(&gate, &format!("feide/{BORROWER}")), second.borrower);
    assert_ne!(looked_up(&gate, &format!("other/{BORROWER}")), second.borrower);
    // A borrower whose id looks like one of the group is not that person.
    let posing = claims(json!({"sub": format!("feide/{BORROWER}")}));
    assert_ne!(gate.bearer(&LOGIN.ed.sign(&posing)).unwrap().borrower, second.borrower);

    gate.settings.issuers[1].borrower_group = None;
    gate.restart();
    let shared = gate.bearer(&LOGIN.ec.sign(&others(json!({})))).unwrap();
    assert_eq!(shared.borrower, default);
}

/// HMAC-SHA256 of `BORROWER` at `NO-0301000` under `PSEUDONYM_KEY`, the first 16 bytes.
const DEFAULT_PSEUDONYM: &str = "35f0f7869a86cb69244e973891cd8da8";
const PSEUDONYM_OF_FEIDE: &str = "02535eeaf9dff938b2446c3a6fdca36c";
