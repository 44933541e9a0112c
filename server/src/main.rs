//! The command `pintle`: flags, logging, and a member that runs until it is told to stop.

use std::{process::ExitCode, time::Duration};

use server::{
    ETCD_VERSION,
    config::{self, Config},
    config_file,
    flags::{self, FlagError, Flags},
    import, logging, start, workers,
};

/// Most of what a request allocates is small and freed on another thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What tasks get to end in once all is stopped.
const CLOSE_MAX: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    #[cfg(feature = "planted")]
    storage::planted::announce();
    if std::env::args().nth(1).is_some_and(|first| first == "import") {
        return import::run_command(std::env::args().skip(2));
    }
    let environment =
        std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
    let flags = match Flags::read(std::env::args().skip(1), environment) {
        Ok(flags) => flags,
        Err(FlagError::Help) => {
            print!("{}", flags::help());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("pintle: {error}");
            return ExitCode::from(2);
        }
    };
    if flags.is_true("version") {
        print_version();
        return ExitCode::SUCCESS;
    }
    let (flags, file) = match flags.get("config-file") {
        "" => (flags, None),
        path => match config_file::read(path) {
            Ok(read) => (read, Some(path.to_string())),
            Err(error) => return refuse(&error),
        },
    };
    let logging = match config::logging(&flags) {
        Ok(logging) => logging,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging.start() {
        return refuse(&error);
    }
    if let Some(path) = file {
        tracing::info!(
            path,
            "loaded server configuration, other configuration command line flags and environment variables will be \
             ignored if provided"
        );
    }
    for warning in &flags.warnings {
        tracing::warn!("{warning}");
    }
    let config = match Config::from_flags(&flags) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(target: logging::FATAL, "{error}");
            return ExitCode::FAILURE;
        }
    };
    match run(config) {
        Ok(()) => start::end(libc::EXIT_SUCCESS),
        Err(error) => {
            tracing::error!(target: logging::FATAL, "{error:#}");
            start::end(libc::EXIT_FAILURE)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    workers::rest_when_idle(&runtime);
    let ended = runtime.block_on(start::run(config, release_memory));
    // So that the store is closed before the process ends; a read that still blocks then has nobody to answer.
    runtime.shutdown_timeout(CLOSE_MAX);
    ended
}

/// Gives back what was taken for reading the log and building the index. By itself the allocator does so when it is next
/// asked for much.
fn release_memory() {
    unsafe extern "C" {
        /// Of mimalloc, whose crate does not offer it. (`mimalloc.h`.)
        fn mi_collect(force: bool);
    }
    // SAFETY: that is how it is declared there; it may be called at any time.
    unsafe { mi_collect(true) };
}

fn refuse(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("pintle: {error}");
    ExitCode::FAILURE
}

fn print_version() {
    println!("etcd Version: {ETCD_VERSION}");
    println!("Pintle Version: {}", env!("CARGO_PKG_VERSION"));
    println!("OS/Arch: {}/{}", std::env::consts::OS, std::env::consts::ARCH);
}
