//! member add, remove, update, promote, list.

use clap::{Args, Subcommand};
use client::{Client, Error, MemberId, pb::MemberAddResponse};

use crate::{
    Context,
    failure::{self, Failure},
    keys::is_serializable,
    number,
    print::{Format, cluster::About, go::quote, print_line},
};

#[derive(Subcommand)]
pub enum Member {
    /// Add a member to the cluster.
    Add(Add),
    /// Remove a member from the cluster.
    #[command(override_usage = "pintlectl member remove <MEMBER_ID>")]
    Remove {
        #[arg(value_name = "MEMBER_ID")]
        args: Vec<String>,
    },
    /// Change the peer URLs of a member.
    #[command(override_usage = "pintlectl member update <MEMBER_ID> --peer-urls <URLS>")]
    Update {
        #[arg(value_name = "MEMBER_ID")]
        args: Vec<String>,
        /// Where other members reach it.
        #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
        peer_urls: String,
    },
    /// Make a learner a voting member.
    #[command(override_usage = "pintlectl member promote <MEMBER_ID>")]
    Promote {
        #[arg(value_name = "MEMBER_ID")]
        args: Vec<String>,
    },
    /// Print the members.
    List {
        #[arg(hide = true)]
        args: Vec<String>,
        /// l: as the cluster has agreed; s: as the server asked knows, which may be behind.
        #[arg(long, default_value = "l")]
        consistency: String,
    },
}

#[derive(Args)]
#[command(override_usage = "pintlectl member add <NAME> --peer-urls <URLS>")]
pub struct Add {
    /// The new member's name.
    #[arg(value_name = "NAME")]
    args: Vec<String>,
    /// Where other members reach it.
    #[arg(long, value_name = "URLS", default_value = "", hide_default_value = true)]
    peer_urls: String,
    /// As a learner, which follows without a vote.
    #[arg(long)]
    learner: bool,
}

/// Hexadecimal, as member ids are printed.
fn member_id(args: &[String]) -> Result<MemberId, Failure> {
    let [text] = args else { return Err(failure::bad_arguments("member ID is not provided")) };
    let id = number::uint(text, 16)
        .map_err(|error| failure::bad_arguments(format!("bad member ID arg ({error}), expecting ID in Hex")))?;
    Ok(MemberId(id))
}

/// As etcd's client checks them before it asks. Source: etcd, `client/pkg/types/urls.go`.
fn peer_urls(text: &str) -> Result<Vec<String>, Failure> {
    if text.is_empty() {
        return Err(failure::bad_arguments("member peer urls not provided"));
    }
    let known =
        |url: &&str| ["http://", "https://", "unix://", "unixs://"].iter().any(|scheme| url.starts_with(scheme));
    match text.split(',').find(|url| !known(url)) {
        Some(url) => {
            let text = format!("URL scheme must be http, https, unix, or unixs: {url}");
            Err(Failure::new(failure::ERROR, text))
        }
        None => Ok(text.split(',').map(str::to_string).collect()),
    }
}

impl Member {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = &context.client;
        match self {
            Member::Add(add) => add.run(context).await,
            Member::Remove { args } => {
                let member = member_id(&args)?;
                context.print(&About { member, answer: &client.member_remove(member).await? })
            }
            Member::Update { args, peer_urls: urls } => {
                let member = member_id(&args)?;
                let urls = peer_urls(&urls)?;
                context.print(&About { member, answer: &client.member_update(member, urls).await? })
            }
            Member::Promote { args } => {
                let member = member_id(&args)?;
                context.print(&About { member, answer: &client.member_promote(member).await? })
            }
            Member::List { args: _, consistency } => {
                context.print(&client.member_list(!is_serializable(&consistency)?).await?)
            }
        }
    }
}

/// The client URLs of all members.
pub async fn client_urls(client: &Client) -> Result<Vec<String>, Failure> {
    let answer = client.member_list(true).await.map_err(|error: Error| {
        let text = failure::describe(&error);
        Failure::new(failure::ERROR, format!("failed to fetch endpoints from etcd cluster member list: {text}"))
    })?;
    Ok(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

impl Add {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = match self.args.as_slice() {
            [] => return Err(failure::bad_arguments("member name not provided").into()),
            [name] => name,
            several => {
                let urls = several.iter().filter(|arg| arg.to_lowercase().starts_with("http"));
                let meant: String = urls.map(|url| format!(", did you mean --peer-urls={url}")).collect();
                return Err(failure::bad_arguments(format!("too many arguments{meant}")).into());
            }
        };
        let answer = context.client.member_add(peer_urls(&self.peer_urls)?, self.learner).await?;
        context.print(&answer)?;
        match context.printer.format {
            Format::Simple => print_line(&environment(name, &self.peer_urls, &answer)),
            _ => Ok(()),
        }
    }
}

/// The variables that the new member is to be started with.
fn environment(name: &str, peer_urls: &str, answer: &MemberAddResponse) -> String {
    let new = answer.member.as_ref().map_or(0, |member| member.id);
    let cluster = answer.members.iter().flat_map(|member| {
        let name = if member.id == new { name } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    let cluster = cluster.collect::<Vec<String>>().join(",");
    let quoted = |text: &str| quote(text.as_bytes());
    format!(
        "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\nETCD_INITIAL_CLUSTER_STATE=\"existing\"",
        quoted(name),
        quoted(&cluster),
        quoted(peer_urls)
    )
}
