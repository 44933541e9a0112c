//! The flags that say who the member of a restored cluster is to be: etcdutl's, of the same names.

use std::path::PathBuf;

use clap::Args;
use server::import::Membership;

#[derive(Args)]
pub struct NewMember {
    /// Name of the member.
    #[arg(long, default_value = "default")]
    name: String,
    /// Where to, empty or not there; <name>.pintle unless given.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the Raft log goes; inside the data directory unless given.
    #[arg(long)]
    wal_dir: Option<PathBuf>,
    /// The members of the new cluster, as name=peer-url,…; this member alone unless given.
    #[arg(long)]
    initial_cluster: Option<String>,
    /// Keeps clusters apart.
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// The member's peer URLs, for the other members.
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
}

impl From<NewMember> for Membership {
    fn from(member: NewMember) -> Membership {
        Membership {
            name: Some(member.name),
            data_dir: member.data_dir,
            wal_dir: member.wal_dir,
            initial_cluster: member.initial_cluster,
            initial_cluster_token: Some(member.initial_cluster_token),
            initial_advertise_peer_urls: Some(member.initial_advertise_peer_urls),
        }
    }
}
