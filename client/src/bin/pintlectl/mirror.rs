//! mirror: keeps one store in step with another, until the other is not needed any more.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{
    Client, Options, Tls,
    mirror::{self, Phase, Status, Verdict},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{Context, number::duration, options::credentials, print::print};

/// How often the progress line is renewed on a terminal, and written elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(250);
const ELSEWHERE: Duration = Duration::from_secs(10);

/// The flags of one of the two sides.
macro_rules! side {
    ($name:ident, $what:literal, $endpoints:literal, $cacert:literal, $cert:literal, $key:literal, $skip:literal,
     $server_name:literal, $user:literal, $password:literal) => {
        #[derive(Args)]
        struct $name {
            #[doc = concat!("Client URLs of the ", $what, ".")]
            #[arg(long = $endpoints, id = $endpoints, value_name = "URLS", value_delimiter = ',', required = true)]
            endpoints: Vec<String>,
            #[doc = concat!("The authorities that the ", $what, "'s certificates must be from.")]
            #[arg(long = $cacert, id = $cacert, value_name = "FILE")]
            cacert: Option<PathBuf>,
            #[doc = concat!("The certificate to show to the ", $what, ".")]
            #[arg(long = $cert, id = $cert, value_name = "FILE", requires = $key)]
            cert: Option<PathBuf>,
            #[doc = "Its key."]
            #[arg(long = $key, id = $key, value_name = "FILE", requires = $cert)]
            key: Option<PathBuf>,
            #[doc = concat!("Takes any certificate from the ", $what, ".")]
            #[arg(long = $skip, id = $skip)]
            insecure_skip_verify: bool,
            #[doc = concat!("The name that the ", $what, "'s certificates must be for.")]
            #[arg(long = $server_name, id = $server_name, value_name = "NAME")]
            server_name: Option<String>,
            #[doc = concat!("User of the ", $what, ", as NAME:PASSWORD or NAME.")]
            #[arg(long = $user, id = $user, value_name = "NAME")]
            user: Option<String>,
            #[doc = "The user's password."]
            #[arg(long = $password, id = $password, value_name = "PASSWORD", requires = $user)]
            password: Option<String>,
        }

        impl $name {
            fn client(self, common: &Options) -> anyhow::Result<Client> {
                let has_tls = self.cacert.is_some() || self.cert.is_some() || self.insecure_skip_verify;
                let tls = Tls {
                    ca: self.cacert,
                    identity: self.cert.zip(self.key),
                    server_name: self.server_name,
                    insecure_skip_verify: self.insecure_skip_verify,
                };
                let prompt = concat!("Password for the ", $what, ": ");
                let credentials = credentials(self.user.as_deref(), self.password.as_deref(), prompt)?;
                let tls = (has_tls || tls.server_name.is_some()).then_some(tls);
                let options = Options { tls, credentials, ..common.clone() };
                Client::with_options(self.endpoints, options).context($what)
            }
        }
    };
}

side!(
    From,
    "source",
    "from",
    "from-cacert",
    "from-cert",
    "from-key",
    "from-insecure-skip-tls-verify",
    "from-server-name",
    "from-user",
    "from-password"
);
side!(
    To,
    "destination",
    "to",
    "to-cacert",
    "to-cert",
    "to-key",
    "to-insecure-skip-tls-verify",
    "to-server-name",
    "to-user",
    "to-password"
);

#[derive(Args)]
pub struct Mirror {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    to: To,
    /// The destination was made by `pintle import` of a snapshot of the source: each revision of the source becomes the
    /// same one there.
    #[arg(long)]
    keep_revisions: bool,
    /// The destination may have keys at first: those that the source has not are deleted.
    #[arg(long, conflicts_with = "keep_revisions")]
    overwrite: bool,
    /// Leases last at least this many seconds in the destination. The mirror may be away for that long.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    lease_ttl_min: i64,
    /// Nothing writes to the source any more: ends when the destination has everything, and says whether it is the same.
    #[arg(long)]
    cut_over: bool,
    /// How long the source may go on changing during the cut-over.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    cut_over_timeout: Duration,
}

impl Mirror {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let common = Options { tls: None, credentials: None, ..context.client.options().clone() };
        let options = mirror::Options {
            keep_revisions: self.keep_revisions,
            overwrite: self.overwrite,
            lease_ttl_min: self.lease_ttl_min,
        };
        let mirror = mirror::Mirror::new(self.from.client(&common)?, self.to.client(&common)?, options);
        let mut line = Line::new();
        let (status, mut news) = (mirror.status(), mirror.status());
        let work = async {
            if self.cut_over {
                mirror.cut_over(self.cut_over_timeout).await.map(Some)
            } else {
                mirror.run().await.map(|never| match never {})
            }
        };
        let stopped = stop_asked_for();
        tokio::pin!(work, stopped);
        let mut tick = interval(line.interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let verdict = loop {
            tokio::select! {
                done = &mut work => break done,
                signal = &mut stopped => {
                    signal?;
                    break Ok(None);
                }
                _ = tick.tick() => line.show(&status.borrow()),
                Ok(()) = news.changed() => line.show_trouble(&news.borrow_and_update()),
            }
        };
        line.end(&status.borrow());
        match verdict? {
            Some(verdict) => {
                print(describe(&verdict).as_bytes())?;
                if !verdict.is_equal() {
                    bail!("the destination is not what the source is; it was left as it is");
                }
                Ok(())
            }
            None => {
                let mirrored = status.borrow().mirrored_revision;
                eprintln!("Stopped; revision {mirrored} is mirrored. The same command goes on from there.");
                Ok(())
            }
        }
    }
}

/// Ends with the first signal to stop.
async fn stop_asked_for() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

fn describe(verdict: &Verdict) -> String {
    let Verdict { source_revision, destination_revision, keys, method, source_hash, destination_hash, .. } = verdict;
    let mut text = format!(
        "source:      revision {source_revision}, hash {source_hash}\n\
         destination: revision {destination_revision}, hash {destination_hash}\n\
         compared:    {method}; {keys} keys\n"
    );
    match (&verdict.difference, verdict.is_equal()) {
        (_, true) => text.push_str("verdict:     equal\n"),
        (Some(difference), false) => text.push_str(&format!("verdict:     DIFFERENT: {difference}\n")),
        (None, false) => text.push_str("verdict:     DIFFERENT in the history; the keys are as they should be\n"),
    }
    text
}

/// One line on standard error that tells how far it is.
struct Line {
    is_terminal: bool,
    shown: String,
    /// What was last said to keep the mirror from going on.
    trouble: Option<String>,
}

impl Line {
    fn new() -> Line {
        Line { is_terminal: std::io::stderr().is_terminal(), shown: String::new(), trouble: None }
    }

    fn interval(&self) -> Duration {
        if self.is_terminal { ON_TERMINAL } else { ELSEWHERE }
    }

    fn show(&mut self, status: &Status) {
        let text = progress(status);
        let mut out = std::io::stderr().lock();
        // Whoever cannot be told how it goes has to do without.
        let _ = match self.is_terminal {
            true => write!(out, "\r{text}\x1b[K").and_then(|()| out.flush()),
            false if text != self.shown => writeln!(out, "{text}"),
            false => Ok(()),
        };
        self.shown = text;
    }

    /// Whoever has given a wrong address or certificate is told at once.
    fn show_trouble(&mut self, status: &Status) {
        if status.trouble.is_some() && status.trouble != self.trouble {
            self.trouble.clone_from(&status.trouble);
            self.show(status);
        }
    }

    fn end(&mut self, status: &Status) {
        self.show(status);
        if self.is_terminal {
            eprintln!();
        }
    }
}

fn progress(status: &Status) -> String {
    let mut text = match &status.phase {
        Phase::Starting => "starting".to_string(),
        Phase::Copying { revision, keys } => format!("copying revision {revision}: {keys} keys"),
        Phase::Following => format!(
            "following: revision {} of {}, {} revisions and {:.1} s behind, {} transactions",
            status.mirrored_revision,
            status.source_revision,
            status.lag(),
            status.lag_time().as_secs_f64(),
            status.transactions
        ),
        Phase::Hashing => {
            format!("comparing HashKV at revision {}: both stores read all they have", status.mirrored_revision)
        }
        Phase::Verifying { keys } => format!("comparing: {keys} keys"),
    };
    if let Some(trouble) = &status.trouble {
        text.push_str(&format!("; waiting: {trouble}"));
    }
    text
}
