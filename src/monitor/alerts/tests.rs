//! Deliveries to a real receiver, which fails, answers late, hangs and redirects.

use std::sync::Mutex;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::super::codes::{Code, Severity};
use super::*;
use crate::lock::lock;
use crate::telemetry::{Metrics, Tracer};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const FAST: Timing = Timing {
    delivery: Duration::from_millis(300),
    first_wait: Duration::from_millis(10),
    longest_wait: Duration::from_millis(20),
    give_up: Duration::from_secs(600),
};

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reply {
    Status(&'static str),
    /// Redirects to another path.
    Redirect,
    /// Answers after the deadline.
    Late,
    /// Never answers.
    Hang,
    /// Closes the connection.
    Close,
}

#[derive(Clone, Debug)]
struct Received {
    path: String,
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

/// A receiver that replies in this order, and then accepts.
struct Receiver {
    url: Url,
    received: mpsc::UnboundedReceiver<Received>,
    /// The requests in progress, and the most that there were.
    running: Arc<Mutex<(usize, usize)>>,
}

impl Receiver {
    async fn start(replies: Vec<Reply>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        let running = Arc::new(Mutex::new((0, 0)));
        let replies = Arc::new(Mutex::new(replies.into_iter()));
        let count = running.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(receive(stream, replies.clone(), sender.clone(), count.clone()));
            }
        });
        Receiver { url, received, running }
    }

    fn webhook(&self) -> Webhook {
        Webhook { url: self.url.clone(), key: SigningKey::parse(SECRET).unwrap() }
    }

    /// Returns the next request, with a valid signature.
    async fn next(&mut self) -> Received {
        let next = timeout(Duration::from_secs(60), self.received.recv());
        let next = next.await.expect("no request arrived").unwrap();
        let key = SigningKey::parse(SECRET).unwrap();
        let signature = key.sign(&next.id, next.timestamp.parse().unwrap(), &next.body);
        assert_eq!(next.signature, signature);
        next
    }
}

async fn receive(
    mut stream: TcpStream,
    replies: Arc<Mutex<std::vec::IntoIter<Reply>>>,
    sender: mpsc::UnboundedSender<Received>,
    running: Arc<Mutex<(usize, usize)>>,
) {
    while let Some(request) = read_request(&mut stream).await {
        {
            let mut running = lock(&running);
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let reply = lock(&replies).next().unwrap_or(Reply::Status("204 No Content"));
        sender.send(request).unwrap();
        let text = match reply {
            Reply::Status(status) => format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"),
            Reply::Redirect => "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\n\
                 content-length: 0\r\n\r\n"
                .to_owned(),
            Reply::Late | Reply::Hang => {
                // The gate gives up and closes the connection, which ends this read.
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                "HTTP/1.1 204 No Content\r\n\r\n".to_owned()
            }
            Reply::Close => String::new(),
        };
        lock(&running).0 -= 1;
        let is_over = !matches!(reply, Reply::Status(_) | Reply::Redirect);
        if stream.write_all(text.as_bytes()).await.is_err() || is_over {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let field = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines
                .filter(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
                .next_back()
        };
        if body.len() < field("content-length").unwrap().parse().unwrap() {
            continue;
        }
        let of = |name| field(name).unwrap().to_owned();
        return Some(Received {
            path: head.split(' ').nth(1).unwrap().to_owned(),
            id: of("webhook-id"),
            timestamp: of("webhook-timestamp"),
            signature: of("webhook-signature"),
            body: body.to_owned(),
        });
    }
}

fn change(code: Code, resolved: Option<Timestamp>) -> Change {
    let (severity, since, what) = (Severity::Critical, Timestamp::UNIX_EPOCH, "It is so.");
    let problem = Problem::new(code, None, severity, "gate:8443", since, what.to_owned());
    Change { code, problem, resolved }
}

fn start(receivers: &[&Receiver], timing: Timing) -> (Alerts, CancellationToken) {
    let webhooks = receivers.iter().map(|receiver| receiver.webhook()).collect();
    let (alerts, stop) = (Alerts::with_timing(webhooks, timing), CancellationToken::new());
    let (clock, metrics) = (Clock::system(), Metrics::new().unwrap());
    alerts.start(
        &ProcessHandles { clock, metrics, tracer: Tracer::default(), slow: Handle::current() },
        &stop,
    );
    (alerts, stop)
}

fn kind_and_code(received: &Received) -> (String, String) {
    let body: serde_json::Value = serde_json::from_str(&received.body).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&body["type"]), text(&body["data"]["code"]))
}

#[tokio::test]
async fn alert_is_repeated_with_one_id_until_the_receiver_accepts_it() {
    let replies = vec![
        Reply::Status("500 Internal Server Error"),
        Reply::Late,
        Reply::Hang,
        Reply::Close,
        Reply::Redirect,
        Reply::Status("410 Gone"),
    ];
    let attempts = replies.len() + 1;
    let mut receiver = Receiver::start(replies).await;
    let (alerts, stop) = start(&[&receiver], FAST);
    alerts.send(&change(Code::LeaseLost, None));
    let first = receiver.next().await;
    assert_eq!(kind_and_code(&first), ("problem.opened".into(), "lease-lost".into()));
    for _ in 1..attempts {
        let again = receiver.next().await;
        assert_eq!((&again.id, &again.body), (&first.id, &first.body));
        assert_eq!(again.path, "/hook", "no redirect is followed");
    }
    // It was accepted: the next request is another event.
    alerts.send(&change(Code::LeaseLost, Some(Timestamp::UNIX_EPOCH)));
    let resolved = receiver.next().await;
    assert_eq!(kind_and_code(&resolved), ("problem.resolved".into(), "lease-lost".into()));
    assert_ne!(resolved.id, first.id);
    assert_eq!(lock(&receiver.running).1, 1, "one delivery at a time");
    stop.cancel();
}

#[tokio::test]
async fn newer_state_replaces_older_and_a_rejected_alert_delays_no_other() {
    // The first alert is refused while others arrive.
    let refused = Reply::Status("400 Bad Request");
    let mut receiver = Receiver::start(vec![refused; 3]).await;
    let slow = Timing { first_wait: Duration::from_secs(600), ..FAST };
    let slow = Timing { longest_wait: Duration::from_secs(600), ..slow };
    let (alerts, stop) = start(&[&receiver], slow);
    alerts.send(&change(Code::LeaseLost, None));
    assert_eq!(kind_and_code(&receiver.next().await).1, "lease-lost");
    // A new problem ends the wait, and comes first.
    alerts.send(&change(Code::FeedStale, None));
    assert_eq!(kind_and_code(&receiver.next().await).1, "feed-stale");
    alerts.send(&change(Code::FeedStale, Some(Timestamp::UNIX_EPOCH)));
    let expected = ("problem.resolved".to_owned(), "feed-stale".to_owned());
    assert_eq!(kind_and_code(&receiver.next().await), expected);
    alerts.send(&change(Code::EndsOverdue, None));
    // The last three are accepted, each once: the opening that has ended is not sent again.
    let mut rest = Vec::new();
    for _ in 0..3 {
        rest.push(kind_and_code(&receiver.next().await));
    }
    let opened = |code: &str| ("problem.opened".to_owned(), code.to_owned());
    assert_eq!(rest[0], opened("ends-overdue"));
    rest.sort();
    assert_eq!(rest, [opened("ends-overdue"), opened("lease-lost"), expected]);
    stop.cancel();
}

#[tokio::test]
async fn hanging_receiver_delays_no_other_and_the_queue_is_bounded() {
    let hanging = Receiver::start(vec![Reply::Hang; 1000]).await;
    let mut healthy = Receiver::start(Vec::new()).await;
    let (alerts, stop) = start(&[&hanging, &healthy], FAST);
    for code in Code::ALL.iter().cycle().take(500) {
        let mut change = change(*code, None);
        change.problem.subject = Some(fastrand::u64(..).to_string());
        alerts.send(&change);
    }
    assert!(healthy.next().await.body.contains("problem.opened"));
    let waiting = alerts.0.iter().map(|target| target.queue.len()).max();
    assert_eq!(waiting, Some(100));
    stop.cancel();
}

#[tokio::test]
async fn alert_is_given_up_after_its_time() {
    let refused = Reply::Status("400 Bad Request");
    let mut receiver = Receiver::start(vec![refused; 1]).await;
    let (alerts, stop) = start(&[&receiver], Timing { give_up: Duration::ZERO, ..FAST });
    alerts.send(&change(Code::LeaseLost, None));
    receiver.next().await;
    alerts.send(&change(Code::EndsOverdue, None));
    assert_eq!(kind_and_code(&receiver.next().await).1, "ends-overdue");
    // The first one is not sent again.
    let is_empty = async {
        while alerts.0[0].queue.len() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), is_empty).await.unwrap();
    assert!(receiver.received.try_recv().is_err());
    stop.cancel();
}
