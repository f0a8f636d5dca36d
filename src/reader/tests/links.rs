//! Signed links: scope, lifetime and forgery.

use proptest::prelude::*;

use super::*;
use crate::loan::Isbn;
use crate::path::RequestPath;

fn title() -> Scope {
    Scope::Title("9780306406157".parse().unwrap())
}

fn prefix(path: &str) -> Scope {
    Scope::prefix(path).unwrap()
}

#[test]
fn link_contains_what_it_was_minted_with() {
    let gate = Gate::start();
    gate.clock.advance(Duration::from_millis(700));
    let borrower = gate.readers.pseudonym(library(), BORROWER);
    for scope in [title(), prefix("/files/9780306406157/bl%C3%A5%20a/")] {
        let (token, expires) =
            gate.readers.mint_link(library(), borrower, &scope, Duration::from_secs(3600)).unwrap();
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_eq!(expires, at(NOW + 3600));
        let query = format!("a=b&token={token}&c");
        for reader in [gate.query(&query).unwrap(), gate.path(&token).unwrap()] {
            assert_eq!((reader.library, reader.borrower), (library(), borrower));
            assert_eq!((reader.issued, reader.expires), (Some(at(NOW)), expires));
            assert_eq!(reader.scope, scope);
        }
    }
}

#[test]
fn too_long_lifetimes_are_neither_minted_nor_accepted() {
    let mut gate = Gate::start();
    let borrower = gate.readers.pseudonym(library(), BORROWER);
    let week = Duration::from_secs(7 * 86_400);
    let (link, _) = gate.readers.mint_link(library(), borrower, &title(), week).unwrap();
    let token = |issued: Value, expires: i64| {
        LOGIN.ed.sign(&claims(json!({ "iat": issued, "exp": expires })))
    };
    let day = 86_400;
    let (old, undated) =
        (token(json!(NOW - 6 * day), NOW + day), token(Value::Null, NOW + 7 * day));
    assert!(gate.query(&format!("token={link}")).is_ok() && gate.bearer(&old).is_ok());
    gate.settings.max_lifetime = week - Duration::from_secs(1);
    gate.restart();
    assert!(gate.readers.mint_link(library(), borrower, &title(), week).is_none());
    for refused in [gate.query(&format!("token={link}")), gate.bearer(&old), gate.bearer(&undated)]
    {
        assert!(unauthenticated(refused).contains("longer than this gate allows"));
    }
}

#[test]
fn link_to_everything_cannot_be_minted() {
    let gate = Gate::start();
    let borrower = gate.readers.pseudonym(library(), BORROWER);
    let mint =
        |scope: &Scope| gate.readers.mint_link(library(), borrower, scope, Duration::from_secs(60));
    for scope in [
        Scope::All,
        Scope::Prefix(Vec::new()),
        Scope::Prefix(vec!["x".repeat(200); 5]),
        Scope::Prefix(vec!["x".repeat(256)]),
    ] {
        assert!(mint(&scope).is_none());
    }
    for path in ["/", "", "files", "/a//b", "/a/../b", "/a//"] {
        assert!(Scope::prefix(path).is_err(), "{path}");
    }
    assert!(gate.path(&mint(&title()).unwrap().0).is_ok());
    let forever =
        gate.readers.mint_link(library(), borrower, &title(), Duration::from_secs(u64::MAX));
    assert!(forever.is_none());
}

#[test]
fn any_changed_bit_invalidates_a_link() {
    let gate = Gate::start();
    for scope in [title(), prefix("/files/a")] {
        let token = gate.link(&scope);
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).unwrap();
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[index] ^= 1 << bit;
                gate.path(&BASE64URL_NOPAD.encode(&changed)).unwrap_err();
            }
            let truncated = BASE64URL_NOPAD.encode(&bytes[..index]);
            gate.path(&truncated).unwrap_err();
        }
        for index in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            gate.path(std::str::from_utf8(&changed).unwrap()).unwrap_err();
        }
        assert!(gate.path(&token).is_ok());
    }
}

#[test]
fn unreadable_links_are_malformed() {
    let gate = Gate::start();
    let token = gate.link(&title());
    for query in [
        "token=".to_owned(),
        "token".to_owned(),
        "token=a".to_owned(),
        "token=AAAA".to_owned(),
        format!("token={token}="),
        format!("token={token}%20"),
        format!("token={token}%ff"),
        format!("token={token}&token={token}"),
        format!("token={token}&token"),
        format!("token={}", "A".repeat(1025)),
    ] {
        let problem = gate.query(&query).unwrap_err();
        assert!(matches!(problem, Problem::RequestMalformed(_)), "{query}: {problem:?}");
    }
    for token in ["", "a/b", "a b", "é"] {
        let problem = gate.path(token).unwrap_err();
        assert!(matches!(problem, Problem::RequestMalformed(_)), "{token}");
    }
    let again = token.replace('-', "%2D").replace('_', "%5F");
    assert!(gate.query(&format!("token={again}")).is_ok());
}

#[test]
fn link_expires_to_the_second_and_rejects_future_issue() {
    let gate = Gate::start();
    let token = gate.link(&title());
    gate.clock.set(at(NOW - 60));
    assert!(gate.path(&token).is_ok());
    gate.reload().unwrap();
    gate.clock.set(at(NOW - 61));
    assert!(unauthenticated(gate.path(&token)).contains("future"));
    gate.clock.set(at(NOW + 3599));
    assert!(gate.path(&token).is_ok());
    gate.clock.advance(Duration::from_secs(1));
    assert!(unauthenticated(gate.path(&token)).contains("expired"), "from the cache");
    assert!(unauthenticated(gate.path(&token)).contains("expired"), "from the link");
}

#[test]
fn only_links_have_a_grace_and_only_on_request() {
    let mut gate = Gate::start();
    let (link, token) = (gate.link(&title()), LOGIN.ed.sign(&claims(json!({}))));
    let late =
        |gate: &Gate| gate.readers.authenticate_with_grace(&HeaderMap::new(), None, Some(&link));
    let late = |gate: &Gate| late(gate).map(|(_, is_late)| is_late);
    assert_eq!(late(&gate), Ok(false));
    for from in ["the cache", "the link"] {
        gate.clock.set(at(NOW + 3599));
        assert_eq!(late(&gate), Ok(false), "{from}");
        for second in [3600, 4199] {
            gate.clock.set(at(NOW + second));
            assert_eq!(late(&gate), Ok(true), "{from}");
            assert!(unauthenticated(gate.path(&link)).contains("expired"), "{from}");
        }
        gate.restart();
    }
    gate.clock.set(at(NOW + 4200));
    assert!(unauthenticated(late(&gate)).contains("expired"));
    assert!(
        unauthenticated(gate.readers.authenticate_with_grace(&authorization(&token), None, None))
            .contains("expired")
    );
    assert_eq!(Readers::expired_link_problem(), gate.path(&link).unwrap_err());

    gate.clock.set(at(NOW + 3600));
    gate.settings.resume_grace = Duration::ZERO;
    gate.reload().unwrap();
    assert!(unauthenticated(late(&gate)).contains("expired"));
}

#[test]
fn link_keys_rotate_by_id() {
    let mut gate = Gate::start();
    let old = gate.link(&title());
    let second = link_key("k2", "another link key of more than thirty-two bytes");
    gate.settings.link_keys.insert(0, second);
    gate.reload().unwrap();
    let new = gate.link(&title());
    assert!(gate.path(&old).is_ok() && gate.path(&new).is_ok());

    gate.settings.link_keys.pop();
    gate.reload().unwrap();
    assert!(gate.path(&new).is_ok());
    assert!(unauthenticated(gate.path(&old)).contains("no longer known"));

    gate.settings.link_keys = vec![link_key("k2", LINK_KEY)];
    gate.reload().unwrap();
    assert!(unauthenticated(gate.path(&new)).contains("wrong"));
}

#[test]
fn scope_opens_only_what_it_names() {
    let gate = Gate::start();
    let isbn: Isbn = "9780306406157".parse().unwrap();
    let other: Isbn = "9781861972712".parse().unwrap();
    for (scope, opened, closed) in [
        (
            title(),
            vec![("/files/9780306406157/a", Some(isbn)), ("/x", Some(isbn))],
            vec![("/files/9781861972712/a", Some(other)), ("/files/9780306406157/a", None)],
        ),
        (
            prefix("/a/97/"),
            vec![("/a/97", None), ("/a/97/b", Some(other)), ("/%61/9%37/b", None)],
            vec![
                ("/a/978", None),
                ("/a/978/b", Some(isbn)),
                ("/a", None),
                ("/", None),
                ("/b/a/97", None),
                ("/A/97", None),
            ],
        ),
        (Scope::Prefix(Vec::new()), vec![], vec![("/", None), ("/a", None)]),
        (Scope::All, vec![("/", None), ("/a", Some(isbn))], vec![]),
    ] {
        let reader = Reader { scope, ..(*gate.path(&gate.link(&title())).unwrap()).clone() };
        for (path, isbn) in opened {
            assert!(reader.opens(isbn, &RequestPath::parse(path).unwrap()), "{path}");
        }
        for (path, isbn) in closed {
            assert!(!reader.opens(isbn, &RequestPath::parse(path).unwrap()), "{path}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_text_is_never_a_valid_link(
        query in "(token=)?\\PC{0,40}",
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let gate = Gate::start();
        prop_assert!(gate.query(&query).is_err());
        prop_assert!(gate.path(&BASE64URL_NOPAD.encode(&bytes)).is_err());
        prop_assert!(gate.path(&query).is_err());
        prop_assert!(gate.bearer(&BASE64URL_NOPAD.encode(&bytes)).is_err());
    }
}
