//! watch.

use clap::Args;
use client::Error;

use crate::{Context, json, keys::Selection, text};

#[derive(Args)]
pub struct Watch {
    #[command(flatten)]
    selection: Selection,
    /// Begin with the changes of this revision.
    #[arg(long, default_value_t = 0)]
    rev: i64,
    /// Print what was there before each change.
    #[arg(long)]
    prev_kv: bool,
    /// Print how far the server is, from time to time.
    #[arg(long)]
    progress_notify: bool,
}

impl Watch {
    /// Ends with the process, or when the server ends the watch.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut watch = client::Watch::new(self.selection.keys()?).from_revision(self.rev);
        if self.prev_kv {
            watch = watch.prev_kv();
        }
        if self.progress_notify {
            watch = watch.progress_notify();
        }
        let error = match context.client.watch(watch).await {
            Ok(mut watcher) => loop {
                match watcher.next().await {
                    Ok(response) => context.print(|| text::watch(&response), || json::Watch::from(&response))?,
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        match error {
            Error::WatchCompacted { .. } | Error::WatchCanceled(_) => {
                eprintln!("watch was canceled ({error})");
                anyhow::bail!("watch is canceled by the server")
            }
            error => Err(error.into()),
        }
    }
}
