//! watch. Source: etcd, `etcdctl/ctlv3/command/watch_command.go`.

use std::{
    env,
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    process::Command,
};

use clap::{Args, FromArgMatches as _};
use client::{
    Client, Error, Keys, Watcher,
    mvccpb::Event,
    pb::{ResponseHeader, WatchResponse},
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    Context, cobra,
    failure::{self, Failure},
    line, number,
    print::{Printer, go::quote, kv::event_name, print_line},
};

#[derive(Args)]
#[command(override_usage = "pintlectl watch [OPTIONS] [KEY] [RANGE_END] [-- COMMAND [ARGUMENTS]...]")]
pub struct Watch {
    /// The key; and the key up to which, without it, all are watched. ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END may
    /// say it instead.
    #[arg(value_name = "KEY> [RANGE_END]", hide = true)]
    args: Vec<OsString>,
    /// Run for each event, which it finds in ETCD_WATCH_KEY, ETCD_WATCH_VALUE, ETCD_WATCH_EVENT_TYPE and
    /// ETCD_WATCH_REVISION.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Read lines from standard input: `watch` with its arguments, as many as wanted, and `progress`.
    #[arg(short, long)]
    interactive: bool,
    /// All keys that begin with the key given.
    #[arg(long)]
    prefix: bool,
    /// Begin with the changes of this revision.
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = number::decimal)]
    rev: i64,
    /// Print what was there before each change.
    #[arg(long)]
    prev_kv: bool,
    /// Print how far the server is, from time to time.
    #[arg(long)]
    progress_notify: bool,
}

/// What the environment says about the keys.
#[derive(Default)]
struct Environment {
    key: OsString,
    range_end: OsString,
}

impl Environment {
    fn read() -> Result<Environment, Failure> {
        let value = |name: &str| env::var_os(name).unwrap_or_default();
        let (key, range_end) = (value("ETCDCTL_WATCH_KEY"), value("ETCDCTL_WATCH_RANGE_END"));
        if key.is_empty() && !range_end.is_empty() {
            let end = quote(range_end.as_bytes());
            let text = format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end}");
            return Err(failure::bad_arguments(text));
        }
        Ok(Environment { key, range_end })
    }
}

/// Changes when all watches are to tell how far they are.
type Asked = tokio::sync::watch::Receiver<()>;

/// What is watched, and what is run at each event.
struct Wanted {
    watch: client::Watch,
    command: Vec<OsString>,
}

impl Watch {
    /// Ends with the process, or when the server ends the watch.
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let environment = Environment::read()?;
        if self.interactive {
            return interact(context, &environment).await;
        }
        // An empty command leaves no trace in what was parsed.
        let is_cut_off = env::args_os().next_back().is_some_and(|last| last == "--");
        let wanted = self.wanted(&environment, is_cut_off)?;
        let canceled = match context.client.watch(wanted.watch).await {
            Ok(watcher) => follow(watcher, context.printer, &wanted.command, None).await?,
            Err(error) => error,
        };
        report(&canceled, context.printer)?;
        Err(failure::interrupted("watch is canceled by the server").into())
    }

    fn wanted(self, environment: &Environment, is_cut_off: bool) -> Result<Wanted, Failure> {
        let refused = |text: &str| Err(failure::bad_arguments(text));
        if is_cut_off && self.command.is_empty() {
            return refused("bad number of arguments (found separator --, but no commands)");
        }
        let mut args = self.args;
        if !environment.key.is_empty() {
            if !args.is_empty() {
                return refused("bad number of arguments (found conflicting environment key)");
            }
            args.push(environment.key.clone());
            args.extend(Some(environment.range_end.clone()).filter(|end| !end.is_empty()));
        }
        let mut args = args.into_iter().map(OsString::into_vec);
        let keys = match (args.next(), args.next()) {
            (None, _) => return refused("bad number of arguments"),
            (Some(_), Some(_)) if self.prefix => {
                return refused("`range_end` and `--prefix` are mutually exclusive");
            }
            (Some(key), Some(end)) => Keys::range(key, end),
            (Some(prefix), None) if self.prefix => Keys::prefix(prefix),
            (Some(key), None) => Keys::one(key),
        };
        let mut watch = client::Watch::new(keys).from_revision(self.rev);
        if self.prev_kv {
            watch = watch.prev_kv();
        }
        if self.progress_notify {
            watch = watch.progress_notify();
        }
        Ok(Wanted { watch, command: self.command })
    }
}

/// Prints what is seen until the watch ends; gives the reason why it did. `asked` changes when progress is to be told.
async fn follow(
    mut watcher: Watcher,
    printer: Printer,
    command: &[OsString],
    mut asked: Option<Asked>,
) -> anyhow::Result<Error> {
    loop {
        let is_asked = async {
            if let Some(asked) = &mut asked
                && asked.changed().await.is_ok()
            {
                return;
            }
            // Nobody asks, or nobody can ask any more.
            std::future::pending().await
        };
        tokio::select! {
            response = watcher.next() => match response {
                Ok(response) => show(&response, printer, command)?,
                Err(error) => return Ok(error),
            },
            () = is_asked => watcher.request_progress(),
        }
    }
}

fn show(response: &WatchResponse, printer: Printer, command: &[OsString]) -> anyhow::Result<()> {
    let revision = response.header.map_or(0, |header| header.revision);
    if response.events.is_empty() {
        print_line(&format!("progress notify: {revision}"))?;
    }
    printer.print(response)?;
    match command {
        [] => Ok(()),
        command => response.events.iter().try_for_each(|event| execute(command, event, revision)),
    }
}

/// Says that a watch has ended. Its last answer is printed, too.
fn report(canceled: &Error, printer: Printer) -> anyhow::Result<()> {
    // The reason of a watcher that was refused comes as Go writes a status, and is shown so.
    let reason = match canceled {
        Error::Etcd(error) => {
            failure::describe(&Error::Rpc { code: error.code(), message: error.message().to_string() })
        }
        other => failure::describe(other),
    };
    eprintln!("watch was canceled ({reason})");
    let compact_revision = match canceled {
        Error::WatchCompacted { compact_revision } => *compact_revision,
        _ => 0,
    };
    let header = Some(ResponseHeader::default());
    printer.print(&WatchResponse { header, canceled: true, compact_revision, ..Default::default() })
}

fn execute(command: &[OsString], event: &Event, revision: i64) -> anyhow::Result<()> {
    let kv = event.kv.clone().unwrap_or_default();
    let status = Command::new(&command[0])
        .args(&command[1..])
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quote(event_name(event).as_bytes()))
        .env("ETCD_WATCH_KEY", quote(&kv.key))
        .env("ETCD_WATCH_VALUE", quote(&kv.value))
        .status();
    let complaint = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => crate::process::describe(status),
        Err(error) => crate::process::cannot_start(&command[0], &error),
    };
    let words: Vec<String> = command.iter().map(|word| quote(word.as_bytes())).collect();
    eprintln!("command [{}] error ({complaint})", words.join(" "));
    Err(Failure::silent(failure::ERROR).into())
}

/// Watches what lines of standard input say, all at the same time.
async fn interact(context: &Context, environment: &Environment) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut watches = tokio::task::JoinSet::new();
    let (progress, asked) = tokio::sync::watch::channel(());
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            Some(ended) = watches.join_next() => {
                ended??;
                continue;
            }
        };
        let Some(line) = line else {
            return Err(failure::invalid_input("error reading watch request line: EOF").into());
        };
        let words = line::split(&line).map_err(failure::invalid_input)?;
        match words.first().and_then(|word| word.to_str()) {
            None => eprintln!("Invalid command: {line} (watch and progress supported)"),
            Some("watch") if words.len() < 2 && environment.key.is_empty() => {
                eprintln!("Invalid command {line} (command type or key is not provided)");
            }
            Some("watch") => {
                let wanted = parse(words, environment)?;
                watches.spawn(run_one(context.client.clone(), wanted, context.printer, asked.clone()));
            }
            Some("progress") => progress.send_replace(()),
            Some(_) => eprintln!("Invalid command {line} (only support watch)"),
        }
    }
}

async fn run_one(client: Client, wanted: Wanted, printer: Printer, asked: Asked) -> anyhow::Result<()> {
    let canceled = match client.watch(wanted.watch).await {
        Ok(watcher) => follow(watcher, printer, &wanted.command, Some(asked)).await?,
        Err(error) => error,
    };
    report(&canceled, printer)
}

fn parse(words: Vec<OsString>, environment: &Environment) -> Result<Wanted, Failure> {
    let is_cut_off = words.last().is_some_and(|last| last == "--");
    let command = cobra::behave(Watch::augment_args(clap::Command::new("watch")));
    let refused = |error: clap::Error| {
        let text = cobra::complaint(&error).map_or_else(|| error.to_string(), |failure| failure.to_string());
        failure::bad_arguments(text)
    };
    let matches = command.try_get_matches_from(words).map_err(refused)?;
    Watch::from_arg_matches(&matches).map_err(refused)?.wanted(environment, is_cut_off)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str, environment: &Environment) -> Option<String> {
        parse(line::split(line).unwrap(), environment).err().map(|failure| failure.to_string())
    }

    #[test]
    fn a_watch_is_told_by_arguments_or_by_the_environment() {
        let none = Environment::default();
        let some = Environment { key: "k".into(), range_end: "l".into() };
        assert_eq!(refusal("watch a", &none), None);
        assert_eq!(refusal("watch a b --rev 5 -- echo hi", &none), None);
        assert_eq!(refusal("watch --rev=1 -- echo hi", &some), None);
        let conflicting = "bad number of arguments (found conflicting environment key)";
        assert_eq!(refusal("watch a", &some).as_deref(), Some(conflicting));
        let no_command = "bad number of arguments (found separator --, but no commands)";
        assert_eq!(refusal("watch a --", &none).as_deref(), Some(no_command));
        assert_eq!(refusal("watch --prefix", &none).as_deref(), Some("bad number of arguments"));
        let exclusive = "`range_end` and `--prefix` are mutually exclusive";
        assert_eq!(refusal("watch a b --prefix", &none).as_deref(), Some(exclusive));
        assert_eq!(refusal("watch a --foo", &none).as_deref(), Some("unknown flag: --foo"));
    }

    #[test]
    fn what_stands_behind_the_separator_is_run() {
        let words = line::split("watch a -- sh -c 'echo $ETCD_WATCH_KEY'").unwrap();
        let Ok(wanted) = parse(words, &Environment::default()) else { panic!("it is a watch") };
        assert_eq!(wanted.command, ["sh", "-c", "echo $ETCD_WATCH_KEY"]);
    }
}
