//! Where a new cluster's members are looked up when `--initial-cluster` does not name them: in DNS ([`srv`]), or in
//! another etcd ([`registry`]). Only a member without data looks, and pintlectl for members. Source: etcd, `server/embed/config.go`
//! (PeerURLsMapAndToken), `server/etcdserver/bootstrap.go`.

pub mod registry;
pub mod srv;

use std::collections::BTreeMap;

use crate::{
    config::Config,
    urls::{self, Url, UrlError},
};

/// Names the members of a new cluster.
#[derive(Debug, Clone)]
pub enum Source {
    /// `--initial-cluster`, or this member alone.
    Flags,
    /// `--discovery-srv`.
    Srv { domain: String, service: String },
    /// `--discovery-endpoints` and `--discovery-token`, which is the cluster's token, too.
    Registry(registry::Registry),
}

#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("--discovery-srv={domain}: {error}")]
    Srv { domain: String, error: srv::SrvError },
    #[error(
        "cannot find local etcd member {name:?} in SRV records: none of --discovery-srv={domain} leads to one of --initial-advertise-peer-urls={advertised}"
    )]
    NotInDns { name: String, domain: String, advertised: String },
    #[error("discovery failed: {0}")]
    Registry(#[from] registry::RegistryError),
    #[error("discovery URL should not be set when joining existing initial cluster")]
    Existing,
    #[error("discovery cluster {0} has duplicate url")]
    DuplicateUrl(String),
    #[error("discovery found {cluster:?}: {error}")]
    Url { cluster: String, error: UrlError },
}

/// The configuration with all members of the cluster in it.
pub async fn complete(config: &Config) -> Result<Config, DiscoveryError> {
    let mut complete = config.clone();
    let own = config.cluster.members.get(&config.name).map_or(&[][..], Vec::as_slice);
    let found = match &config.cluster.source {
        Source::Flags => return Ok(complete),
        Source::Srv { domain, service } => {
            let found = srv::members(domain, service, &config.name, own).await;
            found.map_err(|error| DiscoveryError::Srv { domain: domain.clone(), error })?.join(",")
        }
        Source::Registry(_) if config.cluster.is_existing => return Err(DiscoveryError::Existing),
        Source::Registry(registry) => registry.join(&config.name, own).await?,
    };
    complete.cluster.members = parse(&found)?;
    match (&config.cluster.source, complete.cluster.members.contains_key(&config.name)) {
        (Source::Srv { domain, .. }, false) => Err(DiscoveryError::NotInDns {
            name: config.name.clone(),
            domain: domain.clone(),
            advertised: urls::join(own),
        }),
        _ => Ok(complete),
    }
}

fn parse(cluster: &str) -> Result<BTreeMap<String, Vec<Url>>, DiscoveryError> {
    let error = |error| DiscoveryError::Url { cluster: cluster.into(), error };
    let members = urls::parse_cluster(cluster).map_err(error)?;
    match urls::has_duplicate(members.values().flatten()) {
        true => Err(DiscoveryError::DuplicateUrl(cluster.into())),
        false => Ok(members),
    }
}
