//! backup list, verify, restore: what members have brought to their `--backup-dir`. No member need run for it.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use proto::{ClusterId, MemberId};
use serde::Serialize;
use server::{
    backup::{
        Time,
        catalog::{Base, Catalog, Chain, Goal, Member, Point, Span},
        restore, verify,
    },
    import::Progress,
};
use tokio_util::sync::CancellationToken;

use crate::{
    new_member::NewMember,
    print::{self, Format},
};

#[derive(Subcommand)]
pub enum Backup {
    /// Prints what a backup directory holds, and which revisions and times it covers.
    List(List),
    /// Reads all of a backup directory, and checks that it could be restored from.
    Verify(Verify),
    /// Makes a data directory with the state at a revision, or at a time, for a member of a new cluster.
    Restore(Restore),
}

#[derive(Args)]
pub struct List {
    /// The directory that --backup-dir names.
    dir: PathBuf,
}

#[derive(Args)]
pub struct Verify {
    /// The directory that --backup-dir names.
    dir: PathBuf,
}

#[derive(Args)]
pub struct Restore {
    /// The directory that --backup-dir names.
    dir: PathBuf,
    /// The revision to go back to; without it, and without --to-time, the newest there is.
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..), conflicts_with = "to_time")]
    to_revision: Option<i64>,
    /// The time to go back to, as 2026-11-21T18:00:00Z.
    #[arg(long)]
    to_time: Option<Time>,
    /// Of which cluster, where there are backups of several.
    #[arg(long, value_parser = id)]
    from_cluster: Option<u64>,
    /// Of which member, where any would do.
    #[arg(long, value_parser = id)]
    from_member: Option<u64>,
    #[command(flatten)]
    member: NewMember,
}

fn id(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is not a hexadecimal id"))
}

impl Backup {
    pub async fn run(self, format: Format) -> anyhow::Result<()> {
        match self {
            Backup::List(list) => list.run(format),
            Backup::Verify(verify) => verify.run(format).await,
            Backup::Restore(restore) => restore.run(format).await,
        }
    }
}

/// Runs what blocks, with a progress bar; an interrupt ends it in order, so that nothing is left behind.
async fn with_progress<T: Send + 'static>(work: impl FnOnce(&Progress) -> T + Send + 'static) -> anyhow::Result<T> {
    let unwanted = CancellationToken::new();
    let progress = Progress::on_terminal(unwanted.clone());
    let shown = progress.clone();
    let mut work = tokio::task::spawn_blocking(move || work(&shown));
    let ended = tokio::select! {
        ended = &mut work => ended,
        _ = tokio::signal::ctrl_c() => {
            unwanted.cancel();
            work.await
        }
    };
    progress.end();
    Ok(ended?)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print::print(format!("{}\n", serde_json::to_string(value)?).as_bytes())
}

impl List {
    fn run(self, format: Format) -> anyhow::Result<()> {
        let catalog = Catalog::read(&self.dir)?;
        match format {
            Format::Json => print_json(&listing(&catalog))?,
            _ => print::print(text(&catalog).as_bytes())?,
        }
        match catalog.problems.len() {
            0 => Ok(()),
            count => bail!("{count} files could not be read; what they hold is not in the list"),
        }
    }
}

/// A gap, and what has made it.
struct Gap<'a> {
    from: i64,
    to: i64,
    reason: &'a str,
}

/// The revisions between what is covered, where some are missing.
fn gap<'a>(before: Option<&Span<'_>>, next: &Span<'_>, chain: &'a Chain) -> Option<Gap<'a>> {
    let (from, to) = (before?.last.revision + 1, next.first.revision - 1);
    // Within a chain nothing is missing but what somebody has taken away.
    let is_first = chain.spans().first().is_some_and(|first| first.first == next.first);
    let reason = if is_first { chain.manifest.reason.as_str() } else { "files of the archived log are missing" };
    (from <= to).then_some(Gap { from, to, reason })
}

fn text(catalog: &Catalog) -> String {
    let mut text = String::new();
    for Member { cluster, member, chains, .. } in &catalog.members {
        let name = chains.last().map_or("", |chain| chain.manifest.name.as_str());
        text += &format!("member {} ({name}) of cluster {}\n", MemberId(*member), ClusterId(*cluster));
        let mut before: Option<Span<'_>> = None;
        for chain in chains {
            text += &format!("  chain {} since {}: {}\n", chain.number, chain.manifest.began, chain.manifest.reason);
            for base in &chain.bases {
                let Point { index, revision, time } = base.point();
                let bytes = base.manifest.bytes();
                text += &format!("    full backup of {time}: revision {revision}, entry {index}, {bytes} bytes\n");
            }
            if chain.bases.is_empty() {
                text += "    no full backup, so nothing is covered\n";
            }
            for span in chain.spans() {
                if let Some(Gap { from, to, reason }) = gap(before.as_ref(), &span, chain) {
                    text += &format!("    not covered: revisions {from} to {to} ({reason})\n");
                }
                text += &format!("    covered: {span}\n");
                before = Some(span);
            }
        }
    }
    for problem in &catalog.problems {
        text += &format!("problem: {problem}\n");
    }
    text
}

#[derive(Serialize)]
struct Listing {
    members: Vec<ListedMember>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct ListedMember {
    cluster: String,
    member: String,
    name: String,
    full_backups: Vec<ListedBase>,
    covered: Vec<ListedSpan>,
    gaps: Vec<ListedGap>,
}

#[derive(Serialize)]
struct ListedBase {
    dir: PathBuf,
    time: Time,
    revision: i64,
    compacted_revision: i64,
    index: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct ListedSpan {
    chain: u64,
    first_revision: i64,
    last_revision: i64,
    first_time: Time,
    last_time: Time,
}

#[derive(Serialize)]
struct ListedGap {
    first_revision: i64,
    last_revision: i64,
    reason: String,
}

fn listing(catalog: &Catalog) -> Listing {
    let members = catalog.members.iter().map(|member| {
        let (mut covered, mut gaps, mut before) = (Vec::new(), Vec::new(), None);
        for chain in &member.chains {
            for span in chain.spans() {
                if let Some(Gap { from, to, reason }) = gap(before.as_ref(), &span, chain) {
                    gaps.push(ListedGap { first_revision: from, last_revision: to, reason: reason.into() });
                }
                covered.push(ListedSpan {
                    chain: chain.number,
                    first_revision: span.first.revision,
                    last_revision: span.last.revision,
                    first_time: span.first.time,
                    last_time: span.last.time,
                });
                before = Some(span);
            }
        }
        ListedMember {
            cluster: ClusterId(member.cluster).to_string(),
            member: MemberId(member.member).to_string(),
            name: member.chains.last().map_or(String::new(), |chain| chain.manifest.name.clone()),
            full_backups: member.chains.iter().flat_map(|chain| &chain.bases).map(listed_base).collect(),
            covered,
            gaps,
        }
    });
    Listing {
        members: members.collect(),
        problems: catalog.problems.iter().map(|problem| problem.to_string()).collect(),
    }
}

fn listed_base(base: &Base) -> ListedBase {
    let Point { index, revision, time } = base.point();
    let (compacted_revision, bytes) = (base.manifest.compacted_revision, base.manifest.bytes());
    ListedBase { dir: base.dir.clone(), time, revision, compacted_revision, index, bytes }
}

impl Verify {
    async fn run(self, format: Format) -> anyhow::Result<()> {
        let dir = self.dir.clone();
        let found = with_progress(move |progress| verify::verify(&dir, progress)).await??;
        match format {
            Format::Json => print_json(&found)?,
            _ => {
                let verify::Verified { bases, files, segments, entries, bytes, unfinished, problems } = &found;
                let mut text = format!(
                    "read {bases} full backups with {files} files, and {segments} segments with {entries} entries of the \
                     log: {bytes} bytes\n"
                );
                unfinished.iter().for_each(|note| text += &format!("note: {note}\n"));
                problems.iter().for_each(|problem| text += &format!("problem: {problem}\n"));
                print::print(text.as_bytes())?;
            }
        }
        match found.problems.len() {
            0 => Ok(()),
            count => bail!("{}: {count} problems", self.dir.display()),
        }
    }
}

impl Restore {
    async fn run(self, format: Format) -> anyhow::Result<()> {
        let goal = match (self.to_revision, self.to_time) {
            (Some(revision), _) => Goal::Revision(revision),
            (None, Some(time)) => Goal::Time(time),
            (None, None) => Goal::Newest,
        };
        let request = restore::Request {
            dir: self.dir,
            goal,
            cluster: self.from_cluster,
            member: self.from_member,
            membership: self.member.into(),
        };
        let restored = with_progress(move |progress| restore::restore(&request, progress)).await??;
        if format == Format::Json {
            return print_json(&restored);
        }
        let restore::Restored { data_dir, member, cluster, revision, time, base, replayed, .. } = restored;
        let text = format!(
            "{}: member {member} of cluster {cluster}, at revision {revision} of {time}\n\
             from the full backup {} and {replayed} entries of the log behind it\n",
            data_dir.display(),
            base.display()
        );
        print::print(text.as_bytes())
    }
}
