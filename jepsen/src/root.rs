//! What is asked of a cluster by one who may do everything, whether or not authentication is enabled.

use client::{Connection, WithToken};
use proto::{
    EtcdError,
    etcdserverpb::{AuthenticateRequest, auth_client::AuthClient},
};
use tonic::{Status, transport::Channel};

pub const ROOT: &str = "root";

/// The connection for requests of `root`, whose password is its name. Without authentication they are nobody's.
pub async fn as_root(channel: Channel) -> Result<Connection, Status> {
    let request = AuthenticateRequest { name: ROOT.to_owned(), password: ROOT.to_owned() };
    let token = match AuthClient::new(channel.clone()).authenticate(request).await {
        Ok(answer) => {
            WithToken::new(&answer.into_inner().token).map_err(|error| Status::internal(error.to_string()))?
        }
        Err(refused) if refused.message() == EtcdError::AuthNotEnabled.message() => WithToken::default(),
        Err(refused) => return Err(refused),
    };
    Ok(Connection::new(channel, token))
}
