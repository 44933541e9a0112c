//! Passwords that a person types.

use std::io;

use console::Term;

use crate::failure::{self, Failure};

/// Asks for a password, without showing it. What is no terminal is read up to the end of its line.
pub fn ask(prompt: &str) -> io::Result<String> {
    let terminal = Term::stderr();
    if terminal.is_term() {
        terminal.write_str(prompt)?;
        return terminal.read_secure_line();
    }
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_string())
}

/// The first word of standard input.
pub fn from_input() -> io::Result<String> {
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_string())
}

/// A new password, typed twice.
pub fn choose(user: &str) -> anyhow::Result<String> {
    let asked = |prompt: String| {
        ask(&prompt).map_err(|error| failure::bad_arguments(format!("failed to ask password: {error}")))
    };
    let password = asked(format!("Password of {user}: "))?;
    if password.is_empty() {
        return Err(failure::bad_arguments("empty password").into());
    }
    if asked(format!("Type password of {user} again for confirmation: "))? != password {
        return Err(different().into());
    }
    Ok(password)
}

fn different() -> Failure {
    failure::bad_arguments("given passwords are different")
}
