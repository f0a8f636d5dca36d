//! A ten-minute outage of Bokbasen in which a thousand loans are returned and a thousand expire:
//! every end arrives once, in its order.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http::StatusCode;
use loangate::sandbox::Bounds;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};

use crate::support::scene::{Setting, movable_clock};
use crate::support::{BOOK, File, Scene, metric};

const MINUTE: Duration = Duration::from_secs(60);
/// Duration of a loan in the sandbox.
const LOAN_DURATION: Duration = Duration::from_secs(21 * 86_400);
/// Number of concurrent requests.
const AT_ONCE: usize = 32;

/// Each of these readers requests or returns the book; all must get this status.
async fn each(scene: &Scene, readers: &[String], return_loan: bool, expected: StatusCode) {
    let client = scene.http2();
    let answers = stream::iter(readers).map(|reader| {
        let token = scene.token(reader);
        let request = if return_loan {
            client.delete(format!("{}/loans/{BOOK}", scene.base)).bearer_auth(token)
        } else {
            scene.get(&client, &format!("/files/{BOOK}/book.epub"), &token)
        };
        async move { (reader, request.send().await.unwrap().status()) }
    });
    let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
    for (reader, status) in answers {
        assert_eq!(status, expected, "{reader}");
    }
}

async fn waiting(scene: &Scene) -> f64 {
    metric(&scene.metrics().await, "loangate_ends_waiting", "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_during_a_long_outage_arrive_once_and_in_order() {
    let clock = movable_clock();
    let setting = Setting { bounds: Bounds::quick(), clock: clock.clone(), ..Setting::default() };
    let mut scene = Scene::start_with(setting).await;
    scene.origin.put(&format!("{BOOK}/book.epub"), File::of(100));
    let readers =
        |kind: &str| (0..1000).map(|number| format!("{kind}-{number}")).collect::<Vec<_>>();
    let (expiring, returning) = (readers("expiring"), readers("returning"));
    each(&scene, &expiring, false, StatusCode::OK).await;
    clock.advance(LOAN_DURATION - 5 * MINUTE);
    each(&scene, &returning, false, StatusCode::OK).await;
    scene.stop_sandbox().await;

    each(&scene, &returning, true, StatusCode::NO_CONTENT).await;
    clock.advance(5 * MINUTE);
    scene.until("every end waits", async || waiting(&scene).await == 2000.0).await;
    each(&scene, &expiring, false, StatusCode::FORBIDDEN).await;
    clock.advance(5 * MINUTE);
    assert_eq!(waiting(&scene).await, 2000.0, "an end was lost or counted as acknowledged");

    scene.start_sandbox().await;
    let over = async || waiting(&scene).await == 0.0;
    scene.until("every end has arrived", over).await;
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    for loan in scene.books().await {
        assert_eq!(loan["ends"], 1, "each end arrives once: {loan}");
        *statuses.entry(loan["status"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(
        statuses,
        BTreeMap::from([("EXPIRED".to_owned(), 1000), ("RETURNED".to_owned(), 1000)])
    );

    let file = loangate::config::load(&scene.config_file())
        .unwrap()
        .config
        .ledger
        .sqlite_file()
        .unwrap()
        .to_owned();
    let mut ledger =
        SqliteConnectOptions::new().filename(file).read_only(true).connect().await.unwrap();
    let lives: Vec<(String, i64)> = sqlx::query_as(
        "SELECT life, count(*) FROM (SELECT loan, group_concat(to_state, ' ') AS life FROM \
         (SELECT loan, to_state FROM history ORDER BY number) GROUP BY loan) GROUP BY life",
    )
    .fetch_all(&mut ledger)
    .await
    .unwrap();
    ledger.close().await.unwrap();
    assert_eq!(
        lives,
        [("intended pending accepted ending ended".to_owned(), 2000)],
        "in order, and once"
    );
    scene.end().await;
}
