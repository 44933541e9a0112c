//! snapshot save, status, restore: etcdctl's and etcdutl's.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use client::Client;
use server::import::{self, ImportError, Options, Progress, Status};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    failure::{self, Failure},
    new_member::NewMember,
    options::Global,
    print::{Answer, Style, fields::Fields, go, json::Object, print_line, table::Table},
};

const HASH_BYTES: usize = 32;

#[derive(Subcommand)]
pub enum Snapshot {
    /// Saves the store of one server to a file.
    Save(Save),
    /// Prints hash, revision, number of keys and size of a snapshot file.
    Status(ShowStatus),
    /// Makes a data directory for Pintle out of a snapshot file.
    Restore(Restore),
}

#[derive(Args)]
pub struct Save {
    /// The file to be written.
    #[arg(value_name = "FILENAME")]
    args: Vec<String>,
}

#[derive(Args)]
pub struct ShowStatus {
    /// The file to be read.
    #[arg(value_name = "FILENAME")]
    args: Vec<String>,
}

#[derive(Args)]
pub struct Restore {
    /// A snapshot file, or the data directory of a stopped etcd.
    #[arg(value_name = "FILENAME")]
    args: Vec<String>,
    #[command(flatten)]
    member: NewMember,
    /// How much to raise the revision, so that clients see that it has changed.
    #[arg(long, default_value_t = 0)]
    bump_revision: u64,
    /// Compact what is before; goes with --bump-revision only.
    #[arg(long)]
    mark_compacted: bool,
    /// For a file copied from a data directory, which has no hash.
    #[arg(long)]
    skip_hash_check: bool,
    /// Without a meaning here: nothing is mapped into memory.
    #[arg(long, hide = true)]
    initial_memory_map_size: Option<u64>,
}

impl Snapshot {
    pub async fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Snapshot::Save(save) => save.run(global).await,
            Snapshot::Status(show) => show.run(global),
            Snapshot::Restore(restore) => restore.run().await,
        }
    }
}

/// The one argument that these commands have.
fn file(args: &[String], otherwise: &str) -> Result<PathBuf, Failure> {
    match args {
        [file] => Ok(file.into()),
        _ => Err(failure::bad_arguments(otherwise)),
    }
}

impl Save {
    async fn run(&self, global: &Global) -> anyhow::Result<()> {
        let file = file(&self.args, "snapshot save expects one argument <filename>")?;
        let client = global.client().await?;
        let saved = save(&client, &file).await;
        saved.map_err(|error| match error.downcast::<client::Error>() {
            Ok(error) => failure::interrupted(failure::describe(&error)),
            Err(error) => failure::interrupted(format!("{error:#}")),
        })?;
        print_line(&format!("Snapshot saved at {}", file.display()))
    }
}

async fn save(client: &Client, file: &Path) -> anyhow::Result<()> {
    let endpoints = client.endpoints();
    let [endpoint] = endpoints.as_slice() else {
        bail!("snapshot must be requested to one selected node, not multiple [{}]", endpoints.join(" "));
    };
    let mut name = file.to_path_buf().into_os_string();
    name.push(".part");
    let part = PathBuf::from(name);
    let saved = match receive(client, endpoint, &part).await {
        Ok(()) => fs::rename(&part, file)
            .with_context(|| format!("could not rename {} to {}", part.display(), file.display())),
        Err(error) => Err(error),
    };
    if let Err(error) = saved {
        // There may be none yet.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    sync_folder(file)
}

/// Writes the file, and compares it with the hash at its end.
async fn receive(client: &Client, endpoint: &str, part: &Path) -> anyhow::Result<()> {
    let mut file = create(part).with_context(|| format!("could not open {}", part.display()))?;
    let progress = Progress::on_terminal(CancellationToken::new());
    progress.wait("the member writes the snapshot");
    let mut stream = client.snapshot(endpoint).await?;
    let (mut hash, mut last, mut bytes) = (Sha256::new(), Vec::new(), 0u64);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = &mut interrupted => bail!("interrupted; nothing was saved"),
        };
        let Some(message) = message else { break };
        if bytes == 0 {
            progress.begin("receiving the snapshot", message.remaining_bytes + message.blob.len() as u64);
        }
        file.write_all(&message.blob).with_context(|| format!("could not write {}", part.display()))?;
        bytes += message.blob.len() as u64;
        progress.at(bytes)?;
        last.extend_from_slice(&message.blob);
        let content = last.len().saturating_sub(HASH_BYTES);
        hash.update(&last[..content]);
        last.drain(..content);
    }
    progress.end();
    if bytes % 512 != HASH_BYTES as u64 {
        bail!("sha256 checksum not found [bytes: {bytes}]");
    }
    if hash.finalize()[..] != last[..] {
        bail!("the snapshot's sha256 does not match: it was changed on its way; save it again");
    }
    file.sync_all().with_context(|| format!("could not fsync {}", part.display()))
}

impl ShowStatus {
    fn run(&self, global: &Global) -> anyhow::Result<()> {
        let file = file(&self.args, "snapshot status requires exactly one argument")?;
        let printer = global.printer()?;
        // In etcdutl's words.
        if !file.exists() {
            bail!("stat {}: no such file or directory", file.display());
        }
        let progress = Progress::on_terminal(CancellationToken::new());
        let status = import::status(&file, &progress);
        progress.end();
        printer.print(&Shown(status?))
    }
}

/// As etcdutl 3.5 prints it.
struct Shown(Status);

impl Answer for Shown {
    fn simple(&self, _: Style) -> Vec<u8> {
        let Status { hash, revision, total_keys, total_bytes } = self.0;
        format!("{hash:x}, {revision}, {total_keys}, {}\n", go::size(total_bytes as i64)).into_bytes()
    }

    fn json(&self, _: Style) -> String {
        let Status { hash, revision, total_keys, total_bytes } = self.0;
        Object::new()
            .field("hash", hash.to_string())
            .field("revision", revision.to_string())
            .field("totalKey", total_keys.to_string())
            .field("totalSize", total_bytes.to_string())
            .end()
    }

    fn fields(&self) -> Option<Fields> {
        let Status { hash, revision, total_keys, total_bytes } = self.0;
        let fields = Fields::default().show("Hash", hash).show("Revision", revision);
        Some(fields.show("Keys", total_keys).show("Size", total_bytes))
    }

    fn table(&self) -> Option<Table> {
        let Status { hash, revision, total_keys, total_bytes } = self.0;
        let size = go::size(total_bytes as i64);
        let row = vec![format!("{hash:x}"), revision.to_string(), total_keys.to_string(), size];
        Some(Table::new(&["hash", "revision", "total keys", "total size"], vec![row]))
    }
}

impl Restore {
    async fn run(self) -> anyhow::Result<()> {
        let options = Options {
            source: file(&self.args, "snapshot restore requires exactly one argument")?,
            source_wal_dir: None,
            membership: self.member.into(),
            bump_revision: self.bump_revision,
            mark_compacted: self.mark_compacted,
            skip_hash_check: self.skip_hash_check,
        };
        match import::import_on_terminal(options).await {
            Ok(imported) => {
                eprint!("{imported}");
                Ok(())
            }
            Err(error @ ImportError::BumpWithoutCompaction) => Err(failure::bad_arguments(error.to_string()).into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// For its owner only: it holds everything, hashes of passwords too.
fn create(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn sync_folder(file: &Path) -> anyhow::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: Status = Status { hash: 3001884734, revision: 33, total_keys: 30, total_bytes: 24576 };

    /// What etcdutl 3.5.30 prints.
    #[test]
    fn a_status_is_printed_as_etcdutl_prints_it() {
        let (shown, style) = (Shown(STATUS), Style::default());
        assert_eq!(shown.simple(style), b"b2ed203e, 33, 30, 25 kB\n");
        assert_eq!(shown.json(style), r#"{"hash":3001884734,"revision":33,"totalKey":30,"totalSize":24576}"#);
        let fields = b"\"Hash\" : 3001884734\n\"Revision\" : 33\n\"Keys\" : 30\n\"Size\" : 24576\n";
        assert_eq!(shown.fields().unwrap().into_bytes(), fields);
        let table = "\
┌──────────┬──────────┬────────────┬────────────┐
│   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │
├──────────┼──────────┼────────────┼────────────┤
│ b2ed203e │       33 │         30 │      25 kB │
└──────────┴──────────┴────────────┴────────────┘
";
        assert_eq!(shown.table().unwrap().to_string(), table);
        assert!(shown.protobuf().is_none(), "etcdutl has none either");
    }
}
