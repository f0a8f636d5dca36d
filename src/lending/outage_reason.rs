//! The reason why Bokbasen is unavailable, as shown by `/readyz` and the log.
//!
//! `transport` and `auth` record it. The log has at most one line per minute and reason, however
//! many calls fail.

use std::error::Error;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::lock::lock;
use crate::telemetry::LogLimit;

/// How long a single certain failure counts if no call follows it.
const CERTAIN_FOR: Duration = Duration::from_secs(300);

/// A reason why calls to Bokbasen fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OutageReason {
    /// The login service refuses the credentials.
    LoginRefused,
    /// The API refuses a token that the login service has just issued.
    TokenRefused,
    /// The host name has no address.
    NoAddress,
    /// No program listens at the address.
    ConnectionRefused,
    /// TLS cannot be established.
    Tls,
    /// No response arrived in time.
    Timeout,
    /// The connection cannot be established, or broke.
    Network,
    /// Bokbasen answers 5xx.
    ServerError,
    /// The response is not one of the expected API.
    BadAnswer,
}

impl OutageReason {
    /// Returns the reason why a request got no response.
    pub(super) fn of(error: &reqwest::Error) -> OutageReason {
        let mut cause: Option<&(dyn Error + 'static)> = error.source();
        while let Some(error) = cause {
            if error.is::<rustls::Error>() {
                return OutageReason::Tls;
            }
            // The connector's error type is private.
            if error.to_string() == "dns error" {
                return OutageReason::NoAddress;
            }
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                return OutageReason::ConnectionRefused;
            }
            // An I/O error does not return the error that it wraps as its source, so unwrap it.
            let inside = io.and_then(io::Error::get_ref);
            cause =
                inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| error.source());
        }
        if error.is_timeout() { OutageReason::Timeout } else { OutageReason::Network }
    }

    /// Returns the reason's name in logs.
    pub fn name(self) -> &'static str {
        match self {
            OutageReason::LoginRefused => "login_refused",
            OutageReason::TokenRefused => "token_refused",
            OutageReason::NoAddress => "no_address",
            OutageReason::ConnectionRefused => "connection_refused",
            OutageReason::Tls => "tls",
            OutageReason::Timeout => "timeout",
            OutageReason::Network => "network",
            OutageReason::ServerError => "server_error",
            OutageReason::BadAnswer => "bad_answer",
        }
    }

    /// Returns a sentence for operators: the reason, its effect on readers, and what to do.
    pub fn sentence(self) -> &'static str {
        match self {
            OutageReason::LoginRefused => {
                "Bokbasen refuses the login: readers without a loan get none. Check the \
                 credentials and, for OAuth, the audience in [lending]."
            }
            OutageReason::TokenRefused => {
                "Bokbasen's API refuses the token of a login that worked: readers without a loan \
                 get none. Check lending.audience and lending.url, and this machine's clock."
            }
            OutageReason::NoAddress => {
                "Bokbasen's host name has no address: readers without a loan get none. Check the \
                 host names in [lending] and this machine's DNS."
            }
            OutageReason::ConnectionRefused => {
                "Bokbasen refuses the connection: readers without a loan get none. Check the \
                 ports in [lending] and the firewall."
            }
            OutageReason::Tls => {
                "TLS to Bokbasen fails: readers without a loan get none. Check this machine's \
                 root certificates and clock, and whether a proxy intercepts TLS."
            }
            OutageReason::Timeout => {
                "Bokbasen does not answer within lending.timeout: readers without a loan get \
                 none. Check the network."
            }
            OutageReason::Network => {
                "Bokbasen cannot be reached: readers without a loan get none. Check the network; \
                 the log has the error."
            }
            OutageReason::ServerError => {
                "Bokbasen answers with server errors: readers without a loan get none. Only \
                 Bokbasen can fix this."
            }
            OutageReason::BadAnswer => {
                "Bokbasen's responses cannot be read: readers without a loan get none. Check the \
                 addresses in [lending]."
            }
        }
    }

    /// Whether no call can succeed while the reason lasts, so that one failure is proof.
    fn is_certain(self) -> bool {
        matches!(self, OutageReason::LoginRefused | OutageReason::TokenRefused)
    }
}

/// The reason of the last failure, until a call succeeds.
#[derive(Debug)]
pub(super) struct Health {
    last: Mutex<Option<(OutageReason, Instant)>>,
    limit: LogLimit,
}

impl Health {
    pub(super) fn new() -> Health {
        Health { last: Mutex::new(None), limit: LogLimit::per_minute() }
    }

    /// Records a failure, and logs it once a minute. `detail` has no address, token or secret.
    pub(super) fn failed(&self, call: &'static str, trouble: OutageReason, detail: &str) {
        *lock(&self.last) = Some((trouble, Instant::now()));
        if let Some(suppressed) = self.limit.permit(trouble.name()) {
            let (reason, hint) = (trouble.name(), trouble.sentence());
            tracing::warn!(call, reason, detail, suppressed, hint, "call to Bokbasen failed");
        }
    }

    /// Records that Bokbasen answered a call.
    pub(super) fn answered(&self) {
        let mut last = lock(&self.last);
        if let Some((reason, _)) = last.take()
            && self.limit.permit("answered").is_some()
        {
            tracing::info!(reason = reason.name(), "Bokbasen answers again");
        }
    }

    /// Returns the reason of the last failure since a call was answered.
    pub(super) fn last(&self) -> Option<OutageReason> {
        lock(&self.last).map(|(trouble, _)| trouble)
    }

    /// Returns the reason why calls fail: of any failure if `is_failing`, else only of a recent
    /// certain one. A certain failure expires, since without calls nothing shows that it is over.
    pub(super) fn trouble(&self, is_failing: bool) -> Option<OutageReason> {
        let last = *lock(&self.last);
        let Some((trouble, at)) = last else {
            return is_failing.then_some(OutageReason::Network);
        };
        (is_failing || (trouble.is_certain() && at.elapsed() < CERTAIN_FOR)).then_some(trouble)
    }
}

#[cfg(test)]
mod tests {
    use reqwest::dns::{Name, Resolve, Resolving};

    use super::*;

    struct NoNames;

    impl Resolve for NoNames {
        fn resolve(&self, _: Name) -> Resolving {
            Box::pin(async { Err("there is no such name".into()) })
        }
    }

    #[tokio::test]
    async fn unknown_host_differs_from_closed_port() {
        let client =
            reqwest::Client::builder().no_proxy().dns_resolver(std::sync::Arc::new(NoNames));
        let client = client.build().unwrap();
        let error = client.get("http://bokbasen.invalid/").send().await.unwrap_err();
        assert_eq!(OutageReason::of(&error), OutageReason::NoAddress);
        // Bound but not listening, so that no other program can use the port.
        let reserved = tokio::net::TcpSocket::new_v4().unwrap();
        reserved.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let closed = reserved.local_addr().unwrap();
        let error = client.get(format!("http://{closed}/")).send().await.unwrap_err();
        assert_eq!(OutageReason::of(&error), OutageReason::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_counts_only_if_it_is_certain() {
        let health = Health::new();
        assert_eq!(
            (health.trouble(false), health.trouble(true)),
            (None, Some(OutageReason::Network))
        );
        health.failed("begin", OutageReason::Timeout, "late");
        assert_eq!(
            (health.trouble(false), health.trouble(true)),
            (None, Some(OutageReason::Timeout))
        );
        health.failed("login", OutageReason::LoginRefused, "401");
        assert_eq!(health.trouble(false), Some(OutageReason::LoginRefused));
        tokio::time::advance(CERTAIN_FOR).await;
        assert_eq!(
            (health.trouble(false), health.trouble(true)),
            (None, Some(OutageReason::LoginRefused))
        );
        health.failed("login", OutageReason::LoginRefused, "401");
        health.answered();
        assert_eq!(health.trouble(false), None);
    }
}
