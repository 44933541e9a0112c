//! Who the client says it is: the token that goes with each request.
//!
//! A password is exchanged for a token with the first request. A server that does not take the token (it has expired, or
//! users and roles have changed since) refuses the request before it does anything; the client then gets another token
//! and sends the request again. Of many requests refused together, one gets the token for all. Source: etcd,
//! `client/v3/retry_interceptor.go` (shouldRefreshToken).

use std::fmt;

use parking_lot::RwLock;
use proto::{
    EtcdError,
    etcdserverpb::{AuthenticateRequest, auth_client::AuthClient},
};
use tokio::{sync::Mutex, time::Instant};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::{Error, Result, connection::Route, retry::Repeat};

/// The header with the token. Source: etcd, `api/v3rpc/rpctypes/metadatafields.go`.
const TOKEN: &str = "token";

/// How a client shows who it is, where it does not do so by a certificate.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Exchanged for a token, and again when the token is not taken any more.
    Password {
        /// The user's name.
        user: String,
        /// In plain text: use TLS.
        password: String,
    },
    /// A token from elsewhere, sent as it is.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password {{ user: {user:?} }}"),
            Credentials::Token(_) => write!(f, "Token"),
        }
    }
}

/// A connection that requests go over with the client's token. Generated clients ([`crate::pb`]) take it as it is.
pub type Connection = InterceptedService<Channel, WithToken>;

/// Puts the token into a request.
#[derive(Debug, Clone, Default)]
pub struct WithToken(Option<MetadataValue<Ascii>>);

impl WithToken {
    /// Every request over such a connection carries this token.
    ///
    /// # Errors
    /// The token cannot be sent in a header.
    pub fn new(token: &str) -> Result<WithToken> {
        Ok(WithToken(Some(header(token)?)))
    }
}

impl Interceptor for WithToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        Ok(request)
    }
}

/// A token, and which one in the row it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Token {
    generation: u64,
    value: WithToken,
}

impl Token {
    pub fn is_same(&self, other: &Token) -> bool {
        self.generation == other.generation
    }

    pub fn connection(&self, channel: Channel) -> Connection {
        InterceptedService::new(channel, self.value.clone())
    }
}

#[derive(Debug)]
pub(crate) struct Identity {
    credentials: Option<Credentials>,
    current: RwLock<Current>,
    /// Held by the request that gets a token.
    renewing: Mutex<()>,
}

#[derive(Debug)]
struct Current {
    token: Token,
    is_good: bool,
}

impl Identity {
    pub fn new(credentials: Option<Credentials>) -> Result<Identity> {
        let value = match &credentials {
            Some(Credentials::Token(token)) => WithToken::new(token)?,
            Some(Credentials::Password { .. }) | None => WithToken(None),
        };
        let is_good = !matches!(credentials, Some(Credentials::Password { .. }));
        let current = Current { token: Token { generation: 0, value }, is_good };
        Ok(Identity { credentials, current: RwLock::new(current), renewing: Mutex::default() })
    }

    /// The token to send, which is got first where there is none.
    pub async fn token(&self, route: &Route, deadline: Instant) -> Result<Token> {
        if let Some(token) = self.known() {
            return Ok(token);
        }
        let _one_at_a_time =
            tokio::time::timeout_at(deadline, self.renewing.lock()).await.map_err(|_| Error::Timeout)?;
        if let Some(token) = self.known() {
            return Ok(token);
        }
        let Some(Credentials::Password { user, password }) = &self.credentials else {
            unreachable!("only a password is exchanged for a token")
        };
        let value = authenticate(route, user, password, deadline).await?;
        let mut current = self.current.write();
        current.token = Token { generation: current.token.generation + 1, value };
        current.is_good = true;
        Ok(current.token.clone())
    }

    fn known(&self) -> Option<Token> {
        let current = self.current.read();
        current.is_good.then(|| current.token.clone())
    }

    /// Whether a request that was refused so, with this token, may do better with another one or at another time. The
    /// token is forgotten, unless another request has done so already.
    pub fn is_stale(&self, token: &Token, error: &Error) -> bool {
        let Error::Etcd(error) = error else { return false };
        match (&self.credentials, error) {
            // Another request may have changed users and roles just now. Nothing of ours is out of date.
            (None, EtcdError::AuthOldRevision) => true,
            (
                Some(Credentials::Password { .. }),
                EtcdError::AuthOldRevision | EtcdError::InvalidAuthToken | EtcdError::UserEmpty,
            ) => {
                let mut current = self.current.write();
                if current.token.generation == token.generation {
                    current.is_good = false;
                }
                true
            }
            _ => false,
        }
    }
}

async fn authenticate(route: &Route, user: &str, password: &str, deadline: Instant) -> Result<WithToken> {
    let request = AuthenticateRequest { name: user.to_string(), password: password.to_string() };
    let nobody = Token::default();
    let sent = route.attempts(Repeat::Always, request, &nobody, deadline, async |connection, request| {
        AuthClient::new(connection).authenticate(request).await
    });
    match sent.await {
        Ok(answer) => WithToken::new(&answer.token),
        // Everybody may do everything, until it is enabled: then requests are refused for want of a name.
        Err(Error::Etcd(EtcdError::AuthNotEnabled)) => Ok(WithToken(None)),
        Err(error) => Err(error),
    }
}

fn header(token: &str) -> Result<MetadataValue<Ascii>> {
    token.parse().map_err(|_| Error::Token)
}
