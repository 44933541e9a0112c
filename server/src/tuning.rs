//! Flags that change how something is done, and not what.

use std::{io, str::FromStr, time::Duration};

use storage::Store;

use crate::{duration, flags::Flags, metrics};

const MEGABYTE: i64 = 1024 * 1024;
/// What 0 stands for in `--warning-unary-request-duration`. (etcd: `server/etcdmain/config.go`.)
const SLOW_REQUEST: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub metrics: metrics::Settings,
    /// A unary call that takes longer is told of in the log.
    pub slow_request: Duration,
    pub compaction_pace: storage::Pace,
    /// Log entries kept for followers that lag.
    pub catch_up_entries: u64,
    /// Without it a crash of the machine may lose what was acknowledged.
    pub is_log_synced: bool,
    /// What has been touched once stays in memory.
    pub locks_memory: bool,
    /// Bytes that defragmenting at the start has to free; 0: it is not done.
    pub defrag_threshold_bytes: i64,
}

/// The flag whose value cannot be read, and what it takes.
pub struct Unreadable {
    pub flag: &'static str,
    pub takes: &'static str,
}

impl Tuning {
    pub fn from_flags(flags: &Flags, quota_bytes: i64) -> Result<Tuning, Unreadable> {
        Ok(Tuning {
            metrics: metrics::Settings {
                quota_bytes,
                is_extensive: flags.get("metrics") == "extensive",
                slow_apply: time(flags, "warning-apply-duration")?,
            },
            slow_request: match time(flags, "warning-unary-request-duration")? {
                Duration::ZERO => SLOW_REQUEST,
                slow => slow,
            },
            compaction_pace: storage::Pace {
                step_versions: number::<usize>(flags, "compaction-batch-limit")?.max(1),
                pause: time(flags, "compaction-sleep-interval")?,
            },
            catch_up_entries: number(flags, "snapshot-catchup-entries")?,
            is_log_synced: !flags.is_true("unsafe-no-fsync"),
            locks_memory: flags.is_true("memory-mlock"),
            defrag_threshold_bytes: number::<u32>(flags, "bootstrap-defrag-threshold-megabytes")? as i64 * MEGABYTE,
        })
    }

    /// What concerns the whole process, before there is anything else.
    pub fn apply_to_process(&self) -> io::Result<()> {
        if !self.is_log_synced {
            tracing::warn!("--unsafe-no-fsync: the log is not synced, and a crash of the machine loses data");
        }
        if self.locks_memory {
            lock_memory()?;
        }
        Ok(())
    }

    /// Defragments if that frees enough. Blocks. (etcd: `server/etcdserver/bootstrap.go`, maybeDefragBackend.)
    pub fn apply_to_store(&self, store: &Store) -> Result<(), storage::StorageError> {
        store.pace_compaction(self.compaction_pace);
        if self.defrag_threshold_bytes == 0 {
            return Ok(());
        }
        let size = store.size()?;
        let freeable = size.on_disk - size.in_use;
        let needed = self.defrag_threshold_bytes;
        if freeable < needed {
            tracing::info!(size_bytes = size.on_disk, freeable, needed, "skipping defragmentation");
            return Ok(());
        }
        tracing::info!(size_bytes = size.on_disk, freeable, needed, "defragmenting");
        store.defragment()
    }
}

fn number<N: FromStr>(flags: &Flags, flag: &'static str) -> Result<N, Unreadable> {
    flags.get(flag).parse().map_err(|_| Unreadable { flag, takes: "a whole number" })
}

fn time(flags: &Flags, flag: &'static str) -> Result<Duration, Unreadable> {
    let unreadable = || Unreadable { flag, takes: "a duration such as 300ms, 5s or 1h30m" };
    duration::parse(flags.get(flag)).ok_or_else(unreadable)
}

/// etcd locks the pages of its database. Pintle's are cached by the process, so all of its pages are meant, each from
/// when it is used first.
fn lock_memory() -> io::Result<()> {
    // SAFETY: it takes no pointers.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(()),
        _ => {
            let error = io::Error::last_os_error();
            let text = format!("--memory-mlock: {error}; raise the limit (ulimit -l), or leave the flag out");
            Err(io::Error::new(error.kind(), text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuning(arguments: &[&str]) -> Result<Tuning, &'static str> {
        let flags = Flags::read(arguments.iter().map(|a| a.to_string()), []).unwrap();
        Tuning::from_flags(&flags, 0).map_err(|unreadable| unreadable.flag)
    }

    #[test]
    fn defaults_are_etcds() {
        let tuning = tuning(&[]).unwrap();
        assert_eq!(tuning.metrics.slow_apply, Duration::from_millis(100));
        assert_eq!(tuning.slow_request, Duration::from_millis(300));
        assert_eq!(tuning.compaction_pace, storage::Pace { step_versions: 1000, pause: Duration::ZERO });
        assert_eq!((tuning.catch_up_entries, tuning.defrag_threshold_bytes), (5000, 0));
        assert!(tuning.is_log_synced && !tuning.locks_memory && !tuning.metrics.is_extensive);
    }

    #[test]
    fn a_value_that_cannot_be_read_names_its_flag() {
        assert_eq!(tuning(&["--warning-apply-duration=soon"]).unwrap_err(), "warning-apply-duration");
        assert_eq!(tuning(&["--snapshot-catchup-entries=-1"]).unwrap_err(), "snapshot-catchup-entries");
        assert_eq!(tuning(&["--warning-unary-request-duration=0"]).unwrap().slow_request, SLOW_REQUEST);
    }
}
