//! Keys that are fetched: when, for whom, and what becomes of the tokens that they verified.

use super::super::fetched_keys::FetchedKeys;
use super::super::provider::{FetchError, Fetched};
use super::*;

const FRESH_FOR: Duration = Duration::from_secs(600);
const KEEP: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_secs(10);

fn fetched(signers: &[&Signer]) -> Result<Fetched, FetchError> {
    let keys = signers
        .iter()
        .map(|signer| VerifyKey::of(&serde_json::from_value(signer.jwk.clone()).unwrap()).unwrap());
    Ok(Fetched { keys: keys.collect(), fresh_for: FRESH_FOR })
}

fn failed() -> Result<Fetched, FetchError> {
    Err(FetchError::Failed("it is down".to_owned()))
}

/// A gate whose login service has its keys at an address, which the test answers for.
struct Fetching {
    gate: Gate,
    keys: Arc<FetchedKeys>,
}

impl Fetching {
    fn start() -> Fetching {
        let mut gate = Gate::start();
        gate.settings.issuers[0].keys = KeySource::Discovery;
        gate.settings.issuers[0].keep_keys = KEEP;
        gate.restart();
        let keys = gate.readers.keys.load().tokens.services()[0].fetched_keys().unwrap().clone();
        Fetching { gate, keys }
    }

    /// Fetches as the background task does. Returns false if no fetch is due.
    fn fetch(&self, fetched: Result<Fetched, FetchError>) -> bool {
        let now = self.gate.clock.age_millis();
        self.gate.readers.forget_verified_by(&self.keys.expire(now, KEEP));
        let Some(running) = self.keys.begin(now) else { return false };
        self.gate.readers.forget_verified_by(&running.end(now, fetched));
        true
    }

    fn bearer(&self, signer: &Signer) -> Result<Arc<Reader>, Problem> {
        self.gate.bearer(&signer.sign(&claims(json!({"exp": NOW + 86_400}))))
    }

    fn trouble(&self) -> Option<(bool, String)> {
        let troubles = self.gate.readers.key_troubles();
        troubles.first().map(|trouble| (trouble.is_missing, trouble.what.clone()))
    }
}

/// Returns the seconds of Retry-After of a 503.
fn unavailable<T: fmt::Debug>(answer: Result<T, Problem>) -> u64 {
    match answer {
        Err(problem @ Problem::LoginUnavailable { .. }) => problem.retry_after().unwrap(),
        other => panic!("no 503: {other:?}"),
    }
}

#[test]
fn without_keys_a_token_is_neither_accepted_nor_refused() {
    let test = Fetching::start();
    unavailable(test.bearer(&LOGIN.ed));
    assert!(test.trouble().unwrap().1.contains("being fetched"));
    assert!(test.fetch(failed()));
    assert_eq!(unavailable(test.bearer(&LOGIN.ed)), 10);
    let (is_missing, what) = test.trouble().unwrap();
    assert!(is_missing && what.contains("it is down"), "{what}");
    test.gate.clock.advance(INTERVAL - Duration::from_secs(1));
    assert!(!test.fetch(failed()), "it is called at most once in ten seconds");
    assert_eq!(unavailable(test.bearer(&LOGIN.ed)), 1);
    test.gate.clock.advance(Duration::from_secs(1));
    assert!(test.fetch(fetched(&[&LOGIN.ed])));
    assert!(test.bearer(&LOGIN.ed).is_ok() && test.trouble().is_none());
}

#[test]
fn stale_keys_are_used_as_long_as_configured() {
    let test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed]));
    let first = test.bearer(&LOGIN.ed).unwrap();
    test.gate.clock.advance(FRESH_FOR - Duration::from_secs(1));
    assert!(!test.fetch(failed()), "they are fresh");
    for _ in 0..6 {
        test.gate.clock.advance(KEEP / 6);
        assert!(test.fetch(failed()));
        assert!(Arc::ptr_eq(&first, &test.bearer(&LOGIN.ed).unwrap()), "it is cached");
        let jti = test.gate.clock.age_millis();
        let another = claims(json!({"jti": jti, "exp": NOW + 86_400}));
        assert!(test.gate.bearer(&LOGIN.ed.sign(&another)).is_ok());
        let (is_missing, what) = test.trouble().unwrap();
        assert!(!is_missing && what.contains("old"), "{what}");
    }
    test.gate.clock.advance(INTERVAL);
    unavailable(test.gate.bearer(&LOGIN.ed.sign(&claims(json!({})))));
    test.fetch(failed());
    unavailable(test.bearer(&LOGIN.ed));
    assert!(test.trouble().unwrap().0);
    test.gate.clock.advance(INTERVAL);
    test.fetch(fetched(&[&LOGIN.ed]));
    assert!(test.bearer(&LOGIN.ed).is_ok());
}

#[test]
fn removed_key_ends_its_cached_tokens_and_no_others() {
    let test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed, &LOGIN.ec]));
    let link = test.gate.link(&Scope::Title("9780306406157".parse().unwrap()));
    let by_link = test.gate.path(&link).unwrap();
    let by_ed = test.bearer(&LOGIN.ed).unwrap();
    test.bearer(&LOGIN.ec).unwrap();
    assert_eq!(test.gate.readers.cached_count(), 3);
    let kept = |test: &Fetching| test.gate.readers.cached_count();
    test.gate.clock.advance(FRESH_FOR);
    test.fetch(fetched(&[&LOGIN.ed, &LOGIN.ec, &LOGIN.rsa]));
    assert_eq!(kept(&test), 3, "nothing was removed");
    assert!(Arc::ptr_eq(&by_ed, &test.bearer(&LOGIN.ed).unwrap()));
    test.gate.clock.advance(FRESH_FOR);
    test.fetch(fetched(&[&LOGIN.ed]));
    assert_eq!(kept(&test), 2);
    assert!(Arc::ptr_eq(&by_ed, &test.bearer(&LOGIN.ed).unwrap()));
    assert!(Arc::ptr_eq(&by_link, &test.gate.path(&link).unwrap()));
    assert!(test.bearer(&LOGIN.ec).is_err());
    // The same id with another key: the old one is removed.
    test.gate.clock.advance(FRESH_FOR);
    test.fetch(fetched(&[&LOGIN.stranger]));
    assert!(unauthenticated(test.bearer(&LOGIN.ed)).contains("signature"));
    assert_eq!(kept(&test), 1);
}

#[test]
fn provider_without_keys_has_removed_them_all() {
    let test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed]));
    assert!(test.bearer(&LOGIN.ed).is_ok());
    test.gate.clock.advance(FRESH_FOR);
    test.fetch(fetched(&[]));
    assert!(test.bearer(&LOGIN.ed).is_err());
    assert!(test.trouble().unwrap().0);
}

#[tokio::test]
async fn unknown_key_is_looked_up_once_before_it_is_refused() {
    let test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed]));
    test.gate.clock.advance(INTERVAL);
    let token =
        |kid: &str| LOGIN.ec.sign_with(&json!({"alg": "ES256", "kid": kid}), &claims(json!({})));
    for kid in ["ec", "other"] {
        unavailable(test.gate.bearer(&token(kid)));
    }
    assert!(!test.fetch(failed()), "no request waits");
    let looking = |kid: &'static str| {
        let (keys, clock) = (test.keys.clone(), test.gate.clock.clone());
        tokio::spawn(async move { keys.until_looked_up(Some(kid), &clock).await })
    };
    let waiting = [looking("ec"), looking("other")];
    tokio::task::yield_now().await;
    while !test.fetch(fetched(&[&LOGIN.ed, &LOGIN.ec])) {
        tokio::task::yield_now().await;
    }
    for waited in waiting {
        waited.await.unwrap();
    }
    assert!(test.gate.bearer(&token("ec")).is_ok());
    assert!(unauthenticated(test.gate.bearer(&token("other"))).contains("a key that is not known"));
    // Known to be absent: for ten seconds no request waits for it. Then it may have been published.
    test.keys.until_looked_up(Some("other"), &test.gate.clock).await;
    assert!(!test.fetch(failed()));
    test.gate.clock.advance(INTERVAL);
    unavailable(test.gate.bearer(&token("other")));
    let waiting = looking("other");
    while !test.fetch(fetched(&[&LOGIN.ed, &LOGIN.ec])) {
        tokio::task::yield_now().await;
    }
    waiting.await.unwrap();
    unauthenticated(test.gate.bearer(&token("other")));
    let long = "k".repeat(257);
    assert!(unauthenticated(test.gate.bearer(&token(&long))).contains("a key that is not known"));
    let misused = LOGIN.ed.sign_with(&json!({"alg": "EdDSA", "kid": "ec"}), &claims(json!({})));
    assert!(unauthenticated(test.gate.bearer(&misused)).contains("a key that is not known"));
}

#[tokio::test(start_paused = true)]
async fn waits_for_a_key_are_few_and_short() {
    let test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed]));
    let kids: Vec<String> = (0..1000).map(|number| format!("kid {number}")).collect();
    let began = tokio::time::Instant::now();
    let looked_up = |kid| test.keys.until_looked_up(Some(kid), &test.gate.clock);
    let mut waiting = Vec::new();
    for kid in &kids {
        let mut wait = Box::pin(looked_up(kid));
        waiting.extend(futures_util::poll!(&mut wait).is_pending().then_some(wait));
    }
    assert_eq!(waiting.len(), 64, "as many as one fetch looks up");
    for _ in 0..1000 {
        let mut wait = Box::pin(looked_up("kid 0"));
        waiting.extend(futures_util::poll!(&mut wait).is_pending().then_some(wait));
    }
    assert_eq!(waiting.len(), 256, "as many as may wait");
    futures_util::future::join_all(waiting).await;
    assert_eq!(began.elapsed(), Duration::from_secs(15), "nobody fetches");
    test.gate.clock.advance(INTERVAL);
    test.fetch(failed());
    looked_up("kid 2000").await;
    assert_eq!(began.elapsed(), Duration::from_secs(15), "the login service is down");
}

#[test]
fn reload_keeps_fetched_keys_of_the_same_issuer_and_address() {
    let mut test = Fetching::start();
    test.fetch(fetched(&[&LOGIN.ed]));
    test.gate.settings.issuers[0].audience = "another".to_owned();
    test.gate.reload().unwrap();
    let token = LOGIN.ed.sign(&claims(json!({"aud": "another"})));
    assert!(test.gate.bearer(&token).is_ok());
    for change in [
        |service: &mut JwtSettings| {
            service.keys = KeySource::Url("https://login.example.no/keys".parse().unwrap());
        },
        |service: &mut JwtSettings| service.issuer = "https://new.example.no".to_owned(),
    ] {
        change(&mut test.gate.settings.issuers[0]);
        let issuer = test.gate.settings.issuers[0].issuer.clone();
        test.gate.reload().unwrap();
        let token = LOGIN.ed.sign(&claims(json!({"aud": "another", "iss": issuer})));
        unavailable(test.gate.bearer(&token));
    }
}

#[test]
fn aborted_fetch_is_a_failure() {
    let test = Fetching::start();
    drop(test.keys.begin(test.gate.clock.age_millis()).unwrap());
    assert!(test.trouble().unwrap().1.contains("aborted"));
    assert!(!test.fetch(failed()));
    test.gate.clock.advance(INTERVAL);
    assert!(test.fetch(fetched(&[&LOGIN.ed])));
}
