//! How far a long piece of work has come, for whoever looks at a terminal, and whether it is still wanted.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::ImportError;

/// Drawn as often as this, so that the work is not held up.
const DRAWN_PER_SECOND: u8 = 8;
const TICK: Duration = Duration::from_millis(200);

/// Cheap to clone; clones are one and the same.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    unwanted: CancellationToken,
}

impl Progress {
    /// Drawn on standard error where that is a terminal; the work ends when `unwanted` is cancelled.
    pub fn on_terminal(unwanted: CancellationToken) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWN_PER_SECOND));
        Progress { bar, unwanted }
    }

    /// Drawn nowhere.
    pub fn hidden() -> Progress {
        Progress { bar: ProgressBar::hidden(), unwanted: CancellationToken::new() }
    }

    /// Somebody else works, and does not say how far it is.
    pub fn wait(&self, what: &'static str) {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        self.draw(style.expect("the template is well-formed"), what);
    }

    /// Begins a piece of the work that goes through so many bytes.
    pub fn begin(&self, what: &'static str, bytes: u64) {
        let style = ProgressStyle::with_template("{msg:22} [{bar:36}] {bytes}/{total_bytes} {eta}");
        self.bar.set_length(bytes);
        self.draw(style.expect("the template is well-formed").progress_chars("=> "), what);
    }

    fn draw(&self, style: ProgressStyle, what: &'static str) {
        self.bar.set_style(style);
        self.bar.set_message(what);
        self.bar.reset();
        self.bar.enable_steady_tick(TICK);
    }

    /// So many bytes are done.
    ///
    /// # Errors
    /// When the work is not wanted any more.
    pub fn at(&self, bytes: u64) -> Result<(), ImportError> {
        self.bar.set_position(bytes);
        self.check()
    }

    pub fn check(&self) -> Result<(), ImportError> {
        if self.unwanted.is_cancelled() { Err(ImportError::Interrupted) } else { Ok(()) }
    }

    /// Takes the bar from the terminal.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
