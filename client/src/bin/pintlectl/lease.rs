//! lease grant, revoke, keep-alive, timetolive, list.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use client::LeaseId;

use crate::{Context, json, print, text};

#[derive(Subcommand)]
pub enum Lease {
    /// Grants a lease.
    Grant {
        /// How long it lasts, seconds.
        ttl: i64,
    },
    /// Ends a lease and deletes its keys.
    Revoke {
        #[arg(value_parser = lease_id)]
        id: LeaseId,
    },
    /// Renews a lease, again and again until it is gone.
    KeepAlive(KeepAlive),
    /// Prints how long a lease has left.
    Timetolive {
        #[arg(value_parser = lease_id)]
        id: LeaseId,
        /// Print its keys, too.
        #[arg(long)]
        keys: bool,
    },
    /// Prints all leases.
    List,
}

#[derive(Args)]
pub struct KeepAlive {
    #[arg(value_parser = lease_id)]
    id: LeaseId,
    /// Renew it once.
    #[arg(long)]
    once: bool,
}

/// Hexadecimal, as lease ids are printed.
pub fn lease_id(text: &str) -> Result<LeaseId, String> {
    i64::from_str_radix(text, 16).map(LeaseId).map_err(|_| format!("{text:?} is not a lease id in hexadecimal"))
}

impl Lease {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Lease::Grant { ttl } => {
                let answer = client.lease_grant(ttl, LeaseId(0)).await.context("failed to grant lease")?;
                context.print(|| text::lease_granted(&answer), || json::LeaseGranted::from(&answer))
            }
            Lease::Revoke { id } => {
                let answer = client.lease_revoke(id).await.context("failed to revoke lease")?;
                context.print(|| text::lease_revoked(id), || json::LeaseRevoked::from(&answer))
            }
            Lease::KeepAlive(KeepAlive { id, once: true }) => {
                let answer = client.lease_keep_alive_once(id).await?;
                context.print(|| text::lease_kept_alive(&answer), || json::LeaseKeptAlive::from(&answer))
            }
            Lease::KeepAlive(KeepAlive { id, once: false }) => {
                let mut keeper = client.keep_alive(id);
                while let Ok(answer) = keeper.next().await {
                    context.print(|| text::lease_kept_alive(&answer), || json::LeaseKeptAlive::from(&answer))?;
                }
                // The one way for it to fail. As in etcdctl, the same in both formats, and no error.
                print(format!("lease {:016x} expired or revoked.\n", id.0).as_bytes())
            }
            Lease::Timetolive { id, keys } => {
                let answer = client.lease_time_to_live(id, keys).await?;
                context.print(|| text::lease_time_to_live(&answer, keys), || json::LeaseTimeToLive::from(&answer))
            }
            Lease::List => {
                let answer = client.leases().await?;
                context.print(|| text::leases(&answer), || json::Leases::from(&answer))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_hexadecimal() {
        assert_eq!(lease_id("56f3a1fd1afb4e19"), Ok(LeaseId(0x56f3_a1fd_1afb_4e19)));
        assert_eq!(lease_id("0000000000001234"), Ok(LeaseId(0x1234)));
        assert!(lease_id("lease").is_err() && lease_id("").is_err());
    }
}
