//! The client: several endpoints, of which one is used until it fails.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    Error, Result,
    retry::{Backoff, Repeat},
};

/// A list may answer many megabytes; gRPC's usual limit for a client is 4 MiB.
pub(crate) const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// How a client behaves. `Options::default()` is what [`Client::connect`] takes.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long one connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a request may take, all its attempts together.
    pub request_timeout: Duration,
    /// How often an idle connection is asked for a sign of life. Below 5 s etcd takes it for an attack.
    pub ping_interval: Duration,
    /// How long the sign of life may take until the connection counts as broken.
    pub ping_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
        }
    }
}

/// A client of one cluster. Cheap to clone; clones share connections.
///
/// All requests go to one endpoint until a request fails there; then they go to the next one in the list, and after the
/// last to the first.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Member>,
    current: AtomicUsize,
    options: Options,
}

#[derive(Debug)]
struct Member {
    url: String,
    channel: Channel,
}

/// The endpoint a request goes to. Tells which one failed, when it did.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    index: usize,
    pub channel: Channel,
}

impl Client {
    /// A client for these endpoints: `http://host:port`, or `host:port`. Connections are made when they are needed, and
    /// made again when they break.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect<U: Into<String>>(endpoints: impl IntoIterator<Item = U>) -> Result<Client> {
        Client::with_options(endpoints, Options::default())
    }

    /// [`Client::connect`] with other times.
    pub fn with_options<U: Into<String>>(endpoints: impl IntoIterator<Item = U>, options: Options) -> Result<Client> {
        let members: Vec<Member> =
            endpoints.into_iter().map(|url| Member::new(url.into(), &options)).collect::<Result<_>>()?;
        if members.is_empty() {
            return Err(Error::Endpoint { url: String::new(), reason: "at least one is needed".to_string() });
        }
        Ok(Client { shared: Arc::new(Shared { members, current: AtomicUsize::new(0), options }) })
    }

    /// The endpoints, as they were given.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.shared.members.iter().map(|member| member.url.as_str())
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Where the next request goes.
    pub(crate) fn target(&self) -> Target {
        let index = self.shared.current.load(Ordering::Relaxed);
        Target { index, channel: self.shared.members[index].channel.clone() }
    }

    /// The endpoint failed: later requests go to the next one. Of many requests that failed there, one makes the move.
    pub(crate) fn give_up(&self, target: &Target) {
        let next = (target.index + 1) % self.shared.members.len();
        // A failure to exchange means that another request has moved already.
        let _ = self.shared.current.compare_exchange(target.index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sends a request, and sends it again, elsewhere, where `repeat` allows it.
    pub(crate) async fn call<R, T, F>(&self, repeat: Repeat, request: R, send: impl Fn(Channel, R) -> F) -> Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let members = self.shared.members.len();
        let request_timeout = self.shared.options.request_timeout;
        let deadline = Instant::now() + request_timeout;
        // A member that hangs must leave the others time to answer; but a write that hangs cannot be sent elsewhere.
        let attempt_timeout = match repeat {
            Repeat::Always => request_timeout / u32::try_from(members).unwrap_or(u32::MAX),
            Repeat::IfNotProposed => request_timeout,
        };
        let mut backoff = Backoff::default();
        let mut attempts = 0;
        loop {
            let target = self.target();
            let attempt_deadline = deadline.min(Instant::now() + attempt_timeout);
            let error = match timeout_at(attempt_deadline, send(target.channel.clone(), request.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => {
                    let repeated = repeat.allows(&status);
                    if repeated || status.code() == tonic::Code::Unavailable {
                        self.give_up(&target);
                    }
                    let error = Error::from(status);
                    if !repeated {
                        return Err(error);
                    }
                    error
                }
                Err(_elapsed) => {
                    self.give_up(&target);
                    if repeat == Repeat::IfNotProposed {
                        return Err(Error::Timeout);
                    }
                    Error::Timeout
                }
            };
            attempts += 1;
            if attempts % members == 0 {
                // All were asked; none will be better at once.
                sleep_until(deadline.min(Instant::now() + backoff.wait())).await;
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, attempts, "request is sent again");
        }
    }

    /// Sends a request to one endpoint, once.
    pub(crate) async fn call_at<T, F>(&self, url: &str, send: impl FnOnce(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let member = self.shared.members.iter().find(|member| member.url == url);
        let Some(member) = member else {
            return Err(Error::Endpoint { url: url.to_string(), reason: "is none of this client's".to_string() });
        };
        match timeout(self.shared.options.request_timeout, send(member.channel.clone())).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_elapsed) => Err(Error::Timeout),
        }
    }
}

impl Member {
    fn new(url: String, options: &Options) -> Result<Member> {
        let refused = |reason: &str| Error::Endpoint { url: url.clone(), reason: reason.to_string() };
        let full = match url.split_once("://") {
            Some(("http", rest)) if !rest.is_empty() => url.clone(),
            Some(("https", _)) => return Err(refused("TLS is not supported")),
            Some(_) => return Err(refused("not an http URL")),
            None => format!("http://{url}"),
        };
        let endpoint = Endpoint::from_shared(full)
            .map_err(|error| refused(&error.to_string()))?
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(options.ping_interval)
            .keep_alive_timeout(options.ping_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        if endpoint.uri().host().is_none_or(str::is_empty) {
            return Err(refused("it has no host"));
        }
        Ok(Member { channel: endpoint.connect_lazy(), url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_checked_before_they_are_used() {
        assert!(Client::connect(["127.0.0.1:2379", "http://localhost:2379"]).is_ok());
        for bad in ["https://localhost:2379", "unix:///tmp/socket", "http://", "", "a b"] {
            assert!(matches!(Client::connect([bad]), Err(Error::Endpoint { .. })), "{bad}");
        }
        assert!(matches!(Client::connect(Vec::<String>::new()), Err(Error::Endpoint { .. })));
    }

    #[tokio::test]
    async fn requests_that_failed_together_move_the_client_by_one_endpoint() {
        let client = Client::connect(["a:1", "b:1", "c:1"]).unwrap();
        let target = client.target();
        client.give_up(&target);
        client.give_up(&target);
        assert_eq!(client.target().index, 1);
        client.give_up(&client.target());
        client.give_up(&client.target());
        assert_eq!(client.target().index, 0);
    }
}
