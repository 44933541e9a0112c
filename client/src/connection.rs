//! The client: where requests go, how often they are sent, and how long they may take.

use std::{
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::{Code, Response, Status};

use crate::{
    Balance, Credentials, Error, Result, Tls,
    endpoint::Member,
    endpoints::Endpoints,
    identity::{Connection, Identity, Token},
    lease,
    retry::{Backoff, Repeat},
    watch,
};

/// A list may answer many megabytes; gRPC's usual limit for a client is 4 MiB.
pub(crate) const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// How often a request is sent again with another token. More than once only while users and roles are being changed.
const TOKENS_MAX: u32 = 5;

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
    /// For endpoints `https://`, and for those that do not say. None: the former with what the system trusts, the latter
    /// without TLS.
    pub tls: Option<Tls>,
    /// Who the client is, where a certificate does not say it.
    pub credentials: Option<Credentials>,
    /// How requests are spread over the endpoints.
    pub balance: Balance,
    /// A request about keys that is larger is not sent.
    pub request_bytes_max: usize,
    /// An answer that is larger is not taken.
    pub answer_bytes_max: usize,
    /// How often the endpoints are made those of the cluster's members ([`Client::sync_endpoints`]). None: never.
    pub sync_interval: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            tls: None,
            credentials: None,
            balance: Balance::default(),
            request_bytes_max: usize::MAX,
            answer_bytes_max: ANSWER_BYTES_MAX,
            sync_interval: None,
        }
    }
}

/// A client of one cluster. Cheap to clone; clones share connections.
///
/// A request goes to one of the endpoints, and where that is safe ([`crate::retry`]) to another one when it fails there.
#[derive(Debug, Clone)]
pub struct Client {
    route: Route,
    streams: Arc<Streams>,
    /// What all keys begin with, unseen by the caller.
    pub(crate) namespace: Bytes,
}

/// The streams that are shared by whoever watches, and keeps leases alive.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub watches: watch::Hub,
    pub leases: lease::Hub,
}

/// The way of a request.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    shared: Arc<Shared>,
    /// The one endpoint that is asked, whatever becomes of it.
    only: Option<Arc<Member>>,
    request_timeout: Duration,
}

#[derive(Debug)]
struct Shared {
    endpoints: Endpoints,
    identity: Identity,
    options: Options,
}

/// An endpoint, and whether it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointHealth {
    /// As it was given, or as its member has said.
    pub url: String,
    /// False for a while after a request failed there.
    pub is_healthy: bool,
}

impl Client {
    /// A client for these endpoints: `http://host:port`, `https://host:port`, `host:port`, `unix:///path`. Connections
    /// are made when they are needed, and made again when they break.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect<U: Into<String>>(endpoints: impl IntoIterator<Item = U>) -> Result<Client> {
        Client::with_options(endpoints, Options::default())
    }

    /// [`Client::connect`] with other options.
    pub fn with_options<U: Into<String>>(endpoints: impl IntoIterator<Item = U>, options: Options) -> Result<Client> {
        let members =
            endpoints.into_iter().map(|url| Member::new(&url.into(), &options)).collect::<Result<Vec<_>>>()?;
        if members.is_empty() {
            return Err(Error::Endpoint { url: String::new(), reason: "at least one is needed".to_string() });
        }
        let (request_timeout, sync_interval) = (options.request_timeout, options.sync_interval);
        let shared = Arc::new(Shared {
            endpoints: Endpoints::new(members, options.balance),
            identity: Identity::new(options.credentials.clone())?,
            options,
        });
        if let Some(interval) = sync_interval {
            tokio::spawn(keep_synced(Arc::downgrade(&shared), interval));
        }
        Ok(Client::of(Route { shared, only: None, request_timeout }))
    }

    fn of(route: Route) -> Client {
        Client { route, streams: Arc::default(), namespace: Bytes::new() }
    }

    /// The endpoints: as they were given, or as the members have last said.
    pub fn endpoints(&self) -> Vec<String> {
        self.route.members().iter().map(|member| member.url.clone()).collect()
    }

    /// The endpoints with what is known of them. None is asked.
    pub fn endpoint_health(&self) -> Vec<EndpointHealth> {
        let health = |member: &Arc<Member>| EndpointHealth { url: member.url.clone(), is_healthy: member.is_healthy() };
        self.route.members().iter().map(health).collect()
    }

    /// The options that the client was made with.
    pub fn options(&self) -> &Options {
        &self.route.shared.options
    }

    /// How long a request may take.
    pub fn request_timeout(&self) -> Duration {
        self.route.request_timeout
    }

    /// The same client with another time for each request.
    pub fn with_request_timeout(&self, request_timeout: Duration) -> Client {
        Client { route: Route { request_timeout, ..self.route.clone() }, ..self.clone() }
    }

    /// The same client for this endpoint alone, whether it is one of the client's or not.
    pub fn at(&self, endpoint: &str) -> Result<Client> {
        let known = self.route.members().iter().find(|member| member.url == endpoint).cloned();
        let member = match known {
            Some(member) => member,
            None => Member::new(endpoint, self.options())?,
        };
        let route = Route { only: Some(member), ..self.route.clone() };
        Ok(Client { namespace: self.namespace.clone(), ..Client::of(route) })
    }

    /// Asks the cluster for its members, and takes their client URLs for endpoints. Learners are left out: they answer
    /// little, and members that have not started, which have no URLs.
    pub async fn sync_endpoints(&self) -> Result<()> {
        let members = self.member_list(true).await?.members;
        let voters = members.iter().filter(|member| !member.is_learner && !member.name.is_empty());
        let known = self.route.shared.endpoints.all();
        let mut found = Vec::new();
        for url in voters.flat_map(|member| &member.client_ur_ls) {
            let member = known.iter().find(|member| member.url == *url).cloned();
            found.push(match member {
                Some(member) => member,
                None => Member::new(url, self.options())?,
            });
        }
        if !found.is_empty() {
            self.route.shared.endpoints.replace(found);
        }
        Ok(())
    }

    /// Sends a request of any service, and sends it again, elsewhere, where `repeat` allows it.
    ///
    /// ```no_run
    /// # async fn example(client: &client::Client) -> client::Result<()> {
    /// use client::{pb, retry::Repeat};
    ///
    /// let request = pb::RangeRequest { key: "k".into(), ..Default::default() };
    /// let answer = client
    ///     .call(Repeat::Always, request, async |connection, request| {
    ///         pb::kv_client::KvClient::new(connection).range(request).await
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<R, T, F>(&self, repeat: Repeat, request: R, send: impl Fn(Connection, R) -> F) -> Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.route.call(repeat, request, send).await
    }

    /// The endpoint whose turn it is, with the client's token: for calls that [`Client::call`] is not made for, such as
    /// streams in both directions. What becomes of them does not count for the endpoint's health.
    pub async fn connection(&self) -> Result<Connection> {
        let deadline = Instant::now() + self.route.request_timeout;
        let token = self.route.token(deadline).await?;
        Ok(token.connection(self.route.target().channel.clone()))
    }

    pub(crate) fn with_namespace(&self, namespace: Bytes) -> Client {
        Client { namespace, ..self.clone() }
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    pub(crate) fn watches(&self) -> &watch::Hub {
        &self.streams.watches
    }

    pub(crate) fn keepers(&self) -> &lease::Hub {
        &self.streams.leases
    }
}

impl Route {
    fn members(&self) -> Arc<[Arc<Member>]> {
        match &self.only {
            Some(only) => [only.clone()].into(),
            None => self.shared.endpoints.all(),
        }
    }

    /// Where the next request goes.
    pub fn target(&self) -> Arc<Member> {
        self.only.clone().unwrap_or_else(|| self.shared.endpoints.next())
    }

    pub fn answer_bytes_max(&self) -> usize {
        self.shared.options.answer_bytes_max
    }

    /// The endpoint failed: later requests go elsewhere.
    pub fn give_up(&self, target: &Arc<Member>) {
        self.shared.endpoints.give_up(target);
    }

    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    pub async fn token(&self, deadline: Instant) -> Result<Token> {
        // The token's exchange is a request of its own, whose future would contain itself without the box.
        Box::pin(self.shared.identity.token(self, deadline)).await
    }

    /// Whether another token may help.
    pub fn is_stale(&self, token: &Token, error: &Error) -> bool {
        self.shared.identity.is_stale(token, error)
    }

    pub async fn call<R, T, F>(&self, repeat: Repeat, request: R, send: impl Fn(Connection, R) -> F) -> Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        let mut tokens = 0;
        loop {
            let token = self.token(deadline).await?;
            tokens += 1;
            match self.attempts(repeat, request.clone(), &token, deadline, &send).await {
                // Whoever does not take the token has done nothing, so this is safe for writes, too.
                Err(error) if self.is_stale(&token, &error) && tokens < TOKENS_MAX => {
                    tracing::debug!(%error, "request is sent again with another token");
                }
                done => return done,
            }
        }
    }

    /// Sends a request with this token until it is answered, or may not be sent again, or the time is over.
    pub async fn attempts<R, T, F>(
        &self,
        repeat: Repeat,
        request: R,
        token: &Token,
        deadline: Instant,
        send: impl Fn(Connection, R) -> F,
    ) -> Result<T>
    where
        R: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let members = self.members().len();
        // A member that hangs must leave the others time to answer; but a write that hangs cannot be sent elsewhere.
        let attempt_timeout = match repeat {
            Repeat::Always => self.request_timeout / u32::try_from(members).unwrap_or(u32::MAX),
            Repeat::IfNotProposed | Repeat::Never => self.request_timeout,
        };
        let mut backoff = Backoff::default();
        let mut attempts = 0;
        loop {
            let target = self.target();
            let connection = token.connection(target.channel.clone());
            let attempt_deadline = deadline.min(Instant::now() + attempt_timeout);
            let error = match timeout_at(attempt_deadline, send(connection, request.clone())).await {
                Ok(Ok(answer)) => {
                    target.works();
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => {
                    let repeated = repeat.allows(&status);
                    if repeated || status.code() == Code::Unavailable {
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
                    if repeat != Repeat::Always {
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
}

/// Takes the members' URLs for endpoints, again and again, as long as there is a client.
async fn keep_synced(shared: Weak<Shared>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(shared) = shared.upgrade() else { return };
        let request_timeout = shared.options.request_timeout;
        let client = Client::of(Route { shared, only: None, request_timeout });
        if let Err(error) = client.sync_endpoints().await {
            tracing::debug!(%error, "the members could not be asked for their endpoints");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endpoints_are_checked_before_they_are_used() {
        assert!(Client::connect(["127.0.0.1:2379", "http://localhost:2379", "unix:///tmp/socket"]).is_ok());
        for bad in ["http://", "", "a b", "ftp://a:1", "localhost"] {
            assert!(matches!(Client::connect([bad]), Err(Error::Endpoint { .. })), "{bad}");
        }
        assert!(matches!(Client::connect(Vec::<String>::new()), Err(Error::Endpoint { .. })));
    }

    #[tokio::test]
    async fn files_that_cannot_be_used_are_named_before_anything_is_sent() {
        let options = Options { tls: Some(Tls::with_ca("/nowhere/ca.pem")), ..Options::default() };
        let error = Client::with_options(["https://localhost:1"], options).unwrap_err();
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    }
}
