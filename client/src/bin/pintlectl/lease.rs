//! lease grant, revoke, keep-alive, timetolive, list.

use clap::{Args, Subcommand};
use client::{Error, EtcdError, LeaseId};

use crate::{
    Context,
    failure::{self, Failure},
    number,
    print::{
        Format,
        lease::{Revoked, TimeToLive},
        print_line,
    },
};

#[derive(Subcommand)]
pub enum Lease {
    /// Grant a lease.
    #[command(override_usage = "pintlectl lease grant <SECONDS>")]
    Grant {
        /// How long it lasts, seconds.
        #[arg(value_name = "SECONDS")]
        args: Vec<String>,
    },
    /// End a lease and delete its keys.
    #[command(override_usage = "pintlectl lease revoke <ID>")]
    Revoke {
        #[arg(value_name = "ID")]
        args: Vec<String>,
    },
    /// Renew a lease, again and again until it is gone.
    KeepAlive(KeepAlive),
    /// Print how long a lease has left.
    #[command(override_usage = "pintlectl lease timetolive [OPTIONS] <ID>")]
    Timetolive {
        #[arg(value_name = "ID")]
        args: Vec<String>,
        /// Print its keys, too.
        #[arg(long)]
        keys: bool,
    },
    /// Print all leases.
    List {
        #[arg(hide = true)]
        args: Vec<String>,
    },
}

#[derive(Args)]
#[command(override_usage = "pintlectl lease keep-alive [OPTIONS] <ID>")]
pub struct KeepAlive {
    #[arg(value_name = "ID")]
    args: Vec<String>,
    /// Renew it once.
    #[arg(long)]
    once: bool,
}

/// Hexadecimal, as lease ids are printed. `missing` is said when there is not exactly one argument.
fn lease_id(args: &[String], missing: &str) -> Result<LeaseId, Failure> {
    let [text] = args else { return Err(failure::bad_arguments(missing)) };
    let id = number::int(text, 16)
        .map_err(|error| failure::bad_arguments(format!("bad lease ID arg ({error}), expecting ID in Hex")))?;
    Ok(LeaseId(id))
}

fn failed_to(what: &str, error: &Error) -> Failure {
    Failure::new(failure::ERROR, format!("failed to {what} lease ({})", failure::describe(error)))
}

impl Lease {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Lease::Grant { args } => grant(context, &args).await,
            Lease::Revoke { args } => {
                let id = lease_id(&args, "lease revoke command needs 1 argument")?;
                let answer = context.client.lease_revoke(id).await.map_err(|error| failed_to("revoke", &error))?;
                context.print(&Revoked { id, answer })
            }
            Lease::KeepAlive(keep_alive) => keep_alive.run(context).await,
            Lease::Timetolive { args, keys } => {
                let id = lease_id(&args, "lease timetolive command needs lease ID as argument")?;
                let answer = context.client.lease_time_to_live(id, keys).await.map_err(failure::bad_connection)?;
                context.print(&TimeToLive { answer, keys })
            }
            Lease::List { args: _ } => {
                let answer = context.client.leases().await.map_err(failure::bad_connection)?;
                context.print(&answer)
            }
        }
    }
}

async fn grant(context: &Context, args: &[String]) -> anyhow::Result<()> {
    let [ttl] = args else {
        return Err(failure::bad_arguments("lease grant command needs TTL argument").into());
    };
    let ttl = number::decimal(ttl).map_err(|error| failure::bad_arguments(format!("bad TTL ({error})")))?;
    let answer = context.client.lease_grant(ttl, LeaseId(0)).await.map_err(|error| failed_to("grant", &error))?;
    context.print(&answer)
}

impl KeepAlive {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let id = lease_id(&self.args, "lease keep-alive command needs lease ID as argument")?;
        if self.once {
            let answer = context.client.lease_keep_alive_once(id).await.map_err(failure::bad_connection)?;
            return context.print(&answer);
        }
        let mut keeper = context.client.keep_alive(id);
        loop {
            match keeper.next().await {
                Ok(answer) => context.print(&answer)?,
                Err(Error::LeaseGone(_) | Error::Etcd(EtcdError::LeaseNotFound)) => break,
                Err(error) => return Err(failure::bad_connection(error).into()),
            }
        }
        match context.printer.format {
            Format::Simple => print_line(&format!("lease {:016x} expired or revoked.", id.0)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_are_hexadecimal() {
        let id = |text: &str| lease_id(&[text.to_string()], "").map(|id| id.0).map_err(|error| error.to_string());
        assert_eq!(id("56f3a1fd1afb4e19"), Ok(0x56f3_a1fd_1afb_4e19));
        assert_eq!(id("0000000000001234"), Ok(0x1234));
        let refused = "bad lease ID arg (strconv.ParseInt: parsing \"zz\": invalid syntax), expecting ID in Hex";
        assert_eq!(id("zz"), Err(refused.to_string()));
    }
}
