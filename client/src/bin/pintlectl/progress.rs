//! How far long work is: on a terminal, and nowhere else.

use std::io::{self, IsTerminal as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work of known length.
pub fn bar(length: u64, unit: &str) -> ProgressBar {
    let template = format!("{{wide_bar}} {{pos}} of {{len}} {unit}, {{eta}} left");
    draw(ProgressBar::new(length), &template)
}

/// Work whose length shows only at its end.
pub fn spinner(what: &str, unit: &str) -> ProgressBar {
    draw(ProgressBar::new_spinner(), &format!("{{spinner}} {what}: {{pos}} {unit}, {{elapsed}}"))
}

fn draw(bar: ProgressBar, template: &str) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    bar.set_draw_target(target);
    bar.with_style(ProgressStyle::with_template(template).expect("the template is one"))
}
