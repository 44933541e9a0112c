//! `pintle import`: the command line of an import.

use std::{fmt, path::PathBuf, process::ExitCode};

use tokio_util::sync::CancellationToken;

use super::{ImportError, Imported, Options, Progress, import};

const HELP: &str = "\
Makes a data directory for Pintle out of a snapshot (etcdctl snapshot save) or the data directory of a stopped etcd,
3.4 to 3.7, with the same keys, revisions, leases, users and roles. To import into several members, run it once for
each, with the same source and --initial-cluster; then start them with the same flags.

Usage: pintle import <snapshot file or etcd data directory> [flags]

      --name <name>                          name of the member (default: default)
      --data-dir <directory>                 where to, empty or not there (default: <name>.pintle)
      --wal-dir <directory>                  where the Raft log goes (default: inside the data directory)
      --initial-cluster <name=peer-url,…>    the members of the new cluster (default: this member alone)
      --initial-cluster-token <token>        token that keeps clusters apart (default: etcd-cluster)
      --initial-advertise-peer-urls <urls>   the member's peer URLs (default: http://localhost:2380)
      --bump-revision <number>               raise the revision by so much, so that clients see that it has changed
      --mark-compacted                       compact what is before; goes with --bump-revision
      --skip-hash-check                      for a database file copied from a data directory, without a hash
      --etcd-wal-dir <directory>             where etcd's log is, if not in its data directory
";

/// Wrong arguments, as the flag reader of the member has it.
const BAD_ARGUMENTS: u8 = 2;

/// Runs until it is done, or there is a signal.
pub fn run(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let options = match parse(arguments) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("pintle import: {error}");
            return ExitCode::from(BAD_ARGUMENTS);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pintle import: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(import_on_terminal(options)) {
        Ok(imported) => {
            print!("{imported}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pintle import: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An interrupt ends the import in order, so that nothing is left behind.
pub async fn import_on_terminal(options: Options) -> Result<Imported, ImportError> {
    let unwanted = CancellationToken::new();
    let progress = Progress::on_terminal(unwanted.clone());
    let work = progress.clone();
    let mut work = tokio::task::spawn_blocking(move || import(&options, &work));
    let ended = tokio::select! {
        ended = &mut work => ended,
        _ = tokio::signal::ctrl_c() => {
            unwanted.cancel();
            work.await
        }
    };
    progress.end();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// None when help is asked for.
fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>, String> {
    let (mut options, mut source) = (Options::default(), None);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|f| !f.is_empty())
        else {
            if source.replace(PathBuf::from(&argument)).is_some() {
                return Err(format!("{argument:?}: there is a source already"));
            }
            continue;
        };
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_string())),
            None => (flag, None),
        };
        if matches!(flag, "help" | "h") {
            return Ok(None);
        }
        let switch = match flag {
            "mark-compacted" => Some(&mut options.mark_compacted),
            "skip-hash-check" => Some(&mut options.skip_hash_check),
            _ => None,
        };
        if let Some(switch) = switch {
            let value = inline.as_deref().unwrap_or("true");
            *switch = value.parse().map_err(|_| format!("--{flag} is true or false, not {value:?}"))?;
            continue;
        }
        let mut value = || inline.clone().or_else(|| arguments.next()).ok_or(format!("--{flag} needs a value"));
        let membership = &mut options.membership;
        match flag {
            "name" => membership.name = Some(value()?),
            "data-dir" => membership.data_dir = Some(value()?.into()),
            "wal-dir" => membership.wal_dir = Some(value()?.into()),
            "initial-cluster" => membership.initial_cluster = Some(value()?),
            "initial-cluster-token" => membership.initial_cluster_token = Some(value()?),
            "initial-advertise-peer-urls" => membership.initial_advertise_peer_urls = Some(value()?),
            "etcd-wal-dir" => options.source_wal_dir = Some(value()?.into()),
            "bump-revision" => {
                let value = value()?;
                options.bump_revision = value.parse().map_err(|_| format!("--{flag} is a number, not {value:?}"))?;
            }
            _ => return Err(format!("{argument:?} is no flag of it; pintle import --help tells them")),
        }
    }
    options.source =
        source.ok_or("a snapshot file or etcd's data directory is to be given; see pintle import --help")?;
    Ok(Some(options))
}

/// What there is now, and what its owner should know.
impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Imported { data_dir, member, cluster, settled, versions, leases, replayed, warnings } = self;
        for warning in warnings {
            writeln!(f, "warning: {warning}")?;
        }
        let storage::Settled { revision, compacted } = settled;
        writeln!(
            f,
            "imported {versions} versions and {leases} leases; applied {replayed} entries of etcd's log to them"
        )?;
        writeln!(f, "the store is at revision {revision}, compacted at {compacted}")?;
        writeln!(f, "{}: member {member} of cluster {cluster}", data_dir.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Option<Options>, String> {
        parse(arguments.iter().map(|argument| argument.to_string()))
    }

    #[test]
    fn flags_stand_before_and_behind_the_source() {
        let options =
            parsed(&["--name", "a", "backup.db", "-skip-hash-check", "--bump-revision=7", "--mark-compacted"]);
        let options = options.unwrap().unwrap();
        assert_eq!(options.source, PathBuf::from("backup.db"));
        assert_eq!(options.membership.name.as_deref(), Some("a"));
        assert_eq!((options.bump_revision, options.mark_compacted, options.skip_hash_check), (7, true, true));
        assert!(parsed(&["--help"]).unwrap().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [&["a", "b"][..], &[], &["a", "--name"], &["a", "--nam=x"], &["a", "--bump-revision=-1"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
        assert!(parsed(&["a", "--mark-compacted=maybe"]).is_err());
    }
}
