//! Reader tokens: accepted and rejected claims, and known attacks on JWT verifiers.

use aws_lc_rs::hmac;

use super::*;

#[test]
fn token_of_each_algorithm_yields_its_claims() {
    let gate = Gate::start();
    for signer in [&LOGIN.ed, &LOGIN.ec, &LOGIN.rsa] {
        let token =
            signer.sign(&claims(json!({"aud": ["other", "loangate"], "iat": NOW as f64 - 0.5})));
        let reader = gate.bearer(&token).unwrap();
        assert_eq!(reader.library, library());
        assert_eq!(reader.borrower, gate.readers.pseudonym(library(), BORROWER));
        assert_eq!(reader.issued, Some(at(NOW - 1)), "rounded down");
        assert_eq!(reader.expires, at(NOW + 3600));
        assert_eq!(reader.scope, Scope::All);

        let without_kid =
            signer.sign_with(&json!({"alg": signer.alg}), &claims(json!({"iat": null})));
        assert_eq!(gate.bearer(&without_kid).unwrap().issued, None);
    }
}

#[test]
fn claim_names_are_configurable() {
    let mut gate = Gate::start();
    let jwt = &mut gate.settings.issuers[0];
    jwt.library = LibraryRule::Claim("https://example.no/isil".to_owned());
    jwt.borrower_claim = "patron".to_owned();
    gate.restart();
    let token = LOGIN.ed.sign(&claims(
        json!({"https://example.no/isil": "NO-1", "patron": "p", "library": null, "sub": null}),
    ));
    assert_eq!(gate.bearer(&token).unwrap().library.as_str(), "NO-1");
    let usual = LOGIN.ed.sign(&claims(json!({})));
    assert!(unauthenticated(gate.bearer(&usual)).contains("ISIL"));
}

#[test]
fn wrong_claims_are_rejected() {
    let gate = Gate::start();
    for (changes, words) in [
        (json!({"exp": null}), "when it expires"),
        (json!({"exp": NOW - 60}), "has expired"),
        (json!({"exp": 0}), "has expired"),
        (json!({"exp": "tomorrow"}), "when it expires"),
        (json!({"exp": {}}), "when it expires"),
        (json!({"exp": i64::MAX}), "can be read"),
        (json!({"nbf": NOW + 61}), "not valid yet"),
        (json!({"nbf": "now"}), "can be read"),
        (json!({"iat": NOW + 61}), "in the future"),
        (json!({"iat": "now"}), "can be read"),
        (json!({"iat": [NOW]}), "can be read"),
        (json!({"aud": null}), "another service"),
        (json!({"aud": "other"}), "another service"),
        (json!({"aud": ["other", "loangate2"]}), "another service"),
        (json!({"aud": []}), "another service"),
        (json!({"aud": 1}), "another service"),
        (json!({"iss": null}), "another issuer"),
        (json!({"iss": "https://login.example.com"}), "another issuer"),
        (json!({"iss": "https://login.example.no/"}), "another issuer"),
        (json!({"iss": 1}), "another issuer"),
        (json!({"library": null}), "ISIL"),
        (json!({"library": "Oslo"}), "ISIL"),
        (json!({"library": 301000}), "ISIL"),
        (json!({"library": ["NO-0301000"]}), "ISIL"),
        (json!({"sub": null}), "borrower"),
        (json!({"sub": ""}), "borrower"),
        (json!({"sub": 17}), "borrower"),
        (json!({"sub": {"id": "x"}}), "can be read"),
        (json!({"sub": "x".repeat(257)}), "borrower"),
    ] {
        let token = LOGIN.ed.sign(&claims(changes.clone()));
        let sentence = unauthenticated(gate.bearer(&token));
        assert!(sentence.contains(words), "{changes}: {sentence}");
    }
    unauthenticated(gate.bearer(&LOGIN.ed.sign(&claims(json!({"exp": 1e300})))));
    assert_eq!(gate.readers.cached_count(), 0, "rejected tokens are not cached");
    let token = LOGIN.ed.sign(&claims(
        json!({"exp": NOW - 59, "nbf": NOW + 60, "iat": NOW + 60, "sub": "x".repeat(256)}),
    ));
    assert!(gate.bearer(&token).is_ok(), "all within the leeway");
}

#[test]
fn header_cannot_choose_the_verification() {
    let gate = Gate::start();
    let good = claims(json!({}));
    let (ed, ec, rsa, stranger) = (&LOGIN.ed, &LOGIN.ec, &LOGIN.rsa, &LOGIN.stranger);
    let bare = |header: Value| format!("{}.", message(&header, &good));
    let hmac = |key: &str| {
        let message = message(&json!({"alg": "HS256", "kid": "ed"}), &good);
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        let mac = hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", BASE64URL_NOPAD.encode(mac.as_ref()))
    };
    let mislabelled = |signer: &Signer, alg: &str, kid: &str| {
        signer.sign_with(&json!({"alg": alg, "kid": kid}), &good)
    };
    let public = ed.jwk["x"].as_str().unwrap();
    let own_key = json!({
        "alg": "EdDSA", "kid": "ed", "jwk": stranger.jwk,
        "jku": "https://evil.example/", "x5u": "https://evil.example/",
    });
    let critical = json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": false});
    for (name, token, words) in [
        ("none", bare(json!({"alg": "none"})), "can be read"),
        ("None", bare(json!({"alg": "None", "kid": "ed"})), "can be read"),
        ("no alg", bare(json!({"kid": "ed"})), "can be read"),
        ("unsigned", bare(json!({"alg": "EdDSA", "kid": "ed"})), "signature of"),
        ("hmac", hmac(public), "an algorithm"),
        ("hmac of the file", hmac(&ed.jwk.to_string()), "an algorithm"),
        ("another hash", mislabelled(rsa, "RS512", "rsa"), "an algorithm"),
        ("another padding", mislabelled(rsa, "PS256", "rsa"), "an algorithm"),
        ("unknown kid", mislabelled(ed, "EdDSA", "other"), "a key"),
        ("kid as a path", mislabelled(ed, "EdDSA", "../../dev/null"), "a key"),
        ("key of another type", mislabelled(ed, "EdDSA", "ec"), "a key"),
        ("alg of another type", mislabelled(ec, "RS256", "ec"), "a key"),
        ("alg of another key", mislabelled(ec, "EdDSA", "ed"), "signature of"),
        ("stranger", stranger.sign(&good), "signature of"),
        (
            "stranger without kid",
            stranger.sign_with(&json!({"alg": "EdDSA"}), &good),
            "signature of",
        ),
        ("own key in the header", stranger.sign_with(&own_key, &good), "signature of"),
        ("critical", ed.sign_with(&critical, &good), "can be read"),
    ] {
        let sentence = unauthenticated(gate.bearer(&token));
        assert!(sentence.contains(words), "{name}: {sentence}");
    }
}

#[test]
fn modified_token_is_rejected() {
    let gate = Gate::start();
    for signer in [&LOGIN.ed, &LOGIN.ec, &LOGIN.rsa] {
        let token = signer.sign(&claims(json!({})));
        let other = signer.sign(&claims(json!({"sub": "ola"})));
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (_, other_signature) = other.rsplit_once('.').unwrap();
        let mut wrong = vec![
            format!("{message}.{other_signature}"),
            format!("{message}."),
            message.to_owned(),
            format!("{token}.{signature}"),
            format!(".{message}"),
            format!("{token}="),
            "..".to_owned(),
            ".".to_owned(),
            "a.b.c".to_owned(),
        ];
        wrong.extend((1..token.len()).step_by(7).map(|end| token[..end].to_owned()));
        for token in wrong {
            unauthenticated(gate.bearer(&token));
        }
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            unauthenticated(gate.bearer(std::str::from_utf8(&bytes).unwrap()));
        }
        assert!(gate.bearer(&token).is_ok());
    }
}

#[test]
fn only_one_bearer_authorization_is_accepted() {
    let gate = Gate::start();
    let token = LOGIN.ed.sign(&claims(json!({})));
    for field in [
        "Basic a2FyaTp4".to_owned(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        token.clone(),
        format!("Bearer {token} {token}"),
        format!("Bearer {token}, Bearer {token}"),
        format!("Bearer {token}, Basic a2FyaTp4"),
        format!("Token {token}"),
        format!("Bearer\t{token}"),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&field).unwrap());
        assert!(
            unauthenticated(gate.readers.authenticate(&headers, None, None))
                .contains("scheme Bearer"),
            "{field}"
        );
    }
    let mut headers = authorization(&token);
    headers.append(AUTHORIZATION, headers[AUTHORIZATION].clone());
    assert!(
        unauthenticated(gate.readers.authenticate(&headers, None, None)).contains("more than one")
    );
    headers.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff.a.b").unwrap());
    unauthenticated(gate.readers.authenticate(&headers, None, None));
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("bEARER  {token}")).unwrap());
    assert!(gate.readers.authenticate(&headers, None, None).is_ok());
    let huge = LOGIN.ed.sign(&claims(json!({"more": "x".repeat(7000)})));
    assert!(unauthenticated(gate.bearer(&huge)).contains("8 KiB"));
}

#[test]
fn authorization_wins_and_url_tokens_are_rejected() {
    let gate = Gate::start();
    let token = LOGIN.ed.sign(&claims(json!({})));
    let link = gate.link(&Scope::Title("9780306406157".parse().unwrap()));
    let query = format!("token={link}");
    let both = gate.readers.authenticate(&authorization(&token), Some(&query), Some(&link));
    assert_eq!(both.unwrap().scope, Scope::All);
    let bad = gate.readers.authenticate(&authorization("a.b.c"), Some(&query), None);
    unauthenticated(bad);

    assert!(unauthenticated(gate.query(&format!("token={token}"))).contains("URL"));
    let encoded = token.replace('.', "%2E");
    assert!(unauthenticated(gate.query(&format!("a=b&token={encoded}"))).contains("URL"));
    assert!(unauthenticated(gate.path(&token)).contains("URL"));
    gate.path(&link).unwrap();
    unauthenticated(gate.bearer(&link)); // although it is cached
}

#[test]
fn missing_credential_names_what_to_send() {
    let mut gate = Gate::start();
    for query in [None, Some(""), Some("a=b&tokens=c"), Some("&&=")] {
        let answer = gate.readers.authenticate(&HeaderMap::new(), query, None);
        assert!(unauthenticated(answer).contains("Bearer"));
    }
    let token = LOGIN.ed.sign(&claims(json!({})));
    let link = gate.link(&Scope::Title("9780306406157".parse().unwrap()));
    gate.settings.issuers.clear();
    gate.settings.link_keys = Vec::new();
    gate.restart();
    assert!(unauthenticated(gate.bearer(&token)).contains("no reader tokens"));
    assert!(unauthenticated(gate.path(&link)).contains("no signed links"));
}
