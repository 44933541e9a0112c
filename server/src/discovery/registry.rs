//! The members of a new cluster from another etcd, where they register themselves:
//!
//! ```text
//! /_etcd/registry/<token>/_config/size           how many there are to be; put there by the operator
//! /_etcd/registry/<token>/members/<member id>    name=peer-url,…; put there by each member
//! ```
//!
//! The first so many to register make the cluster; each waits until there are as many.
//! Source: etcd, `server/etcdserver/api/v3discovery/discovery.go`.

use std::{future::Future, io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use proto::{
    MemberId,
    etcdserverpb::{
        AuthenticateRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, auth_client::AuthClient,
        kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::KeyValue,
};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{
    identity,
    tls::{self, Dialer, TlsError},
    urls::Url,
};

/// The pause behind a failure doubles this often.
const DOUBLINGS_MAX: u32 = 8;

/// How to reach the registry, and the cluster's token there.
#[derive(Debug, Clone)]
pub struct Registry {
    pub endpoints: Vec<String>,
    pub token: String,
    pub dial_timeout: Duration,
    pub request_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// Name and password.
    pub user: Option<(String, String)>,
    /// None: without TLS.
    pub tls: Option<tls::Settings>,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("discovery: size key is bad")]
    BadSize,
    #[error("discovery: size key not found: put the number of members into {0}")]
    NoSize(String),
    #[error("discovery: cluster is full")]
    Full,
}

/// A member as it has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registered {
    key: String,
    /// `name=url,…`
    members: String,
    created: i64,
}

/// What the registry holds.
struct Found {
    size: usize,
    registered: Vec<Registered>,
    revision: i64,
}

/// The registry, connected.
struct Session<'a> {
    registry: &'a Registry,
    channel: Channel,
    credentials: Option<AsciiMetadataValue>,
}

impl Registry {
    /// Registers this member and waits for the others; gives them all as `--initial-cluster` would.
    pub async fn join(&self, name: &str, own: &[Url]) -> Result<String, RegistryError> {
        let key = self.member_key(identity::member_id(own, &self.token));
        let parts: Vec<String> = own.iter().map(|url| format!("{name}={url}")).collect();
        let mut session = Session { registry: self, channel: self.channel()?, credentials: None };
        session.log_in().await;
        session.check(&key).await?;
        session.register(&key, &parts.join(",")).await;
        loop {
            let found = session.check(&key).await?;
            if found.registered.len() >= found.size {
                tracing::info!(members = found.size, "found all members in the registry");
                return Ok(first(found));
            }
            tracing::info!(size = found.size, found = found.registered.len(), "waiting for members in the registry");
            if let Err(status) = session.wait_for_change(found.revision).await {
                tracing::warn!(error = status.message(), "the registry does not tell of changes; looking again");
                tokio::time::sleep(self.request_timeout).await;
            }
        }
    }

    /// A connection to the first of the endpoints that can be reached; what has no scheme goes by the flags.
    fn channel(&self) -> Result<Channel, RegistryError> {
        let dialer = self.tls.as_ref().map(|tls| Dialer::new(tls, tls.pair.as_ref())).transpose()?;
        let dialer = Arc::new(dialer.unwrap_or_else(Dialer::plain));
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = |text: &String| if text.contains("://") { text.clone() } else { format!("{scheme}://{text}") };
        let urls: Arc<[String]> = self.endpoints.iter().map(url).collect();
        let dial_timeout = self.dial_timeout;
        let connect = tower::service_fn(move |_| {
            let (urls, dialer) = (urls.clone(), dialer.clone());
            async move {
                let mut failure = io::Error::from(io::ErrorKind::NotFound);
                for url in urls.iter() {
                    let connected = tokio::time::timeout(dial_timeout, dialer.connect(url)).await;
                    match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        Ok(stream) => return Ok(TokioIo::new(stream)),
                        Err(error) => {
                            tracing::warn!(url, %error, "cannot connect to the registry");
                            failure = error;
                        }
                    }
                }
                Err(failure)
            }
        });
        // Who is called is the connector's to decide; this is the name in the calls.
        let endpoint = Endpoint::from_static("http://registry")
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout);
        Ok(endpoint.connect_with_connector_lazy(connect))
    }

    fn size_key(&self) -> String {
        format!("/_etcd/registry/{}/_config/size", self.token)
    }

    fn members_prefix(&self) -> String {
        format!("/_etcd/registry/{}/members", self.token)
    }

    fn member_key(&self, member: MemberId) -> String {
        format!("{}/{member}", self.members_prefix())
    }
}

impl Session<'_> {
    async fn log_in(&mut self) {
        let Some((name, password)) = self.registry.user.clone() else { return };
        let client = AuthClient::new(self.channel.clone());
        let answer = self
            .until_answered("authenticate", || {
                let (mut client, name, password) = (client.clone(), name.clone(), password.clone());
                async move { client.authenticate(AuthenticateRequest { name, password }).await }
            })
            .await;
        self.credentials = answer.into_inner().token.parse().ok();
    }

    /// The registry as it is, unless it is full without `key`.
    async fn check(&self, key: &str) -> Result<Found, RegistryError> {
        let size_key = self.registry.size_key();
        let (size, _) = self.range(&size_key, false).await;
        let size = size.first().ok_or(RegistryError::NoSize(size_key))?;
        let size = std::str::from_utf8(&size.value).ok().and_then(|size| size.parse::<usize>().ok());
        let size = size.filter(|size| *size > 0).ok_or(RegistryError::BadSize)?;
        let (kvs, revision) = self.range(&self.registry.members_prefix(), true).await;
        let registered = registered(kvs);
        let place = registered.iter().position(|member| member.key == key).unwrap_or(registered.len());
        if place >= size {
            return Err(RegistryError::Full);
        }
        Ok(Found { size, registered, revision })
    }

    async fn register(&self, key: &str, members: &str) {
        let put = PutRequest { key: key.to_string().into(), value: members.to_string().into(), ..Default::default() };
        let client = KvClient::new(self.channel.clone());
        self.until_answered("register this member", || {
            let (mut client, request) = (client.clone(), self.request(put.clone()));
            async move { client.put(request).await }
        })
        .await;
        tracing::info!(key, members, "registered this member");
    }

    async fn range(&self, key: &str, is_prefix: bool) -> (Vec<KeyValue>, i64) {
        let range_end = if is_prefix { prefix_end(key) } else { Vec::new() };
        let range = RangeRequest { key: key.to_string().into(), range_end: range_end.into(), ..Default::default() };
        let client = KvClient::new(self.channel.clone());
        let answer = self
            .until_answered("read the registry", || {
                let (mut client, request) = (client.clone(), self.request(range.clone()));
                async move { client.range(request).await }
            })
            .await;
        let answer = answer.into_inner();
        (answer.kvs, answer.header.map_or(0, |header| header.revision))
    }

    /// Returns when a member registers behind `revision`.
    async fn wait_for_change(&self, revision: i64) -> Result<(), Status> {
        let prefix = self.registry.members_prefix();
        let create = WatchCreateRequest {
            range_end: prefix_end(&prefix).into(),
            key: prefix.into(),
            start_revision: revision + 1,
            ..Default::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open: its end would end the watch.
        let requests = futures::StreamExt::chain(futures::stream::iter([create]), futures::stream::pending());
        let mut responses = WatchClient::new(self.channel.clone()).watch(self.request(requests)).await?.into_inner();
        while let Some(response) = responses.message().await? {
            if response.canceled {
                return Err(Status::aborted(response.cancel_reason));
            }
            if !response.events.is_empty() {
                return Ok(());
            }
        }
        Err(Status::unavailable("the watch has ended"))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(credentials) = &self.credentials {
            request.metadata_mut().insert("token", credentials.clone());
        }
        request
    }

    /// Asks until there is an answer: without the registry there is nothing else to do.
    async fn until_answered<T, F>(&self, what: &str, ask: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        for attempt in 1.. {
            let answer = tokio::time::timeout(self.registry.request_timeout, ask()).await;
            let reason = match answer {
                Ok(Ok(answer)) => return answer,
                Ok(Err(status)) => status.message().to_string(),
                Err(_) => "no answer in time".to_string(),
            };
            let pause = Duration::from_secs(1 << DOUBLINGS_MAX.min(attempt));
            tracing::warn!(what, reason, pause_s = pause.as_secs(), "retry connecting to discovery service");
            tokio::time::sleep(pause).await;
        }
        unreachable!("attempts have no end")
    }
}

/// What says names and URLs, in the order of registration.
fn registered(kvs: Vec<KeyValue>) -> Vec<Registered> {
    let mut registered: Vec<Registered> = kvs
        .into_iter()
        .filter_map(|kv| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
            let (key, members) = (text(&kv.key), text(&kv.value));
            if !members.contains('=') {
                tracing::warn!(key, members, "invalid peer info returned from discovery service");
                return None;
            }
            Some(Registered { key, members, created: kv.create_revision })
        })
        .collect();
    registered.sort_by_key(|member| member.created);
    registered
}

/// As many as make the cluster.
fn first(found: Found) -> String {
    let members: Vec<String> = found.registered.into_iter().take(found.size).map(|member| member.members).collect();
    members.join(",")
}

/// The end of the range of all keys that begin with `prefix`, which ends with a letter.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, create_revision: i64) -> KeyValue {
        let (key, value) = (key.to_string().into(), value.to_string().into());
        KeyValue { key, value, create_revision, ..Default::default() }
    }

    #[test]
    fn the_first_to_register_make_the_cluster() {
        let kvs = vec![
            kv("m/3", "c=http://h:3", 7),
            kv("m/1", "a=http://h:1", 9),
            kv("m/2", "nothing", 1),
            kv("m/4", "d=http://h:4", 5),
        ];
        let found = Found { size: 2, registered: registered(kvs), revision: 9 };
        assert_eq!(first(found), "d=http://h:4,c=http://h:3");
    }

    #[test]
    fn a_prefix_ends_before_the_next_key() {
        assert_eq!(prefix_end("/members"), b"/membert");
    }
}
