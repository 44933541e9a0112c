//! The command line as etcdctl's own parser, cobra, takes it, so that scripts go on working.
//!
//! - A switch may have a value: `--prefix=false`.
//! - The last of several flags of one name counts.
//! - A command may be cut short: `mem li` is `member list`.
//! - A flag's value may begin with a hyphen.
//! - Global flags have environment variables, `ETCDCTL_ENDPOINTS` for `--endpoints`, here also `PINTLECTL_ENDPOINTS`,
//!   which goes before. A flag goes before both; etcdctl refuses to be told twice.
//! - Complaints have cobra's words, and its exit code, 1.

use std::env;

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{failure::Failure, number};

/// Makes a command and all commands in it behave so.
pub fn behave(command: Command) -> Command {
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_string()).collect();
    let command = command.args_override_self(true).infer_subcommands(true).mut_args(flag);
    subcommands.into_iter().fold(command, |command, name| command.mut_subcommand(name, behave))
}

fn flag(arg: Arg) -> Arg {
    let Some(name) = arg.get_long().map(str::to_string) else { return arg };
    let arg = match arg.get_action() {
        ArgAction::SetTrue => switch(arg, "false"),
        ArgAction::SetFalse => switch(arg, "true"),
        _ => arg.allow_hyphen_values(true),
    };
    match arg.is_global_set() {
        true => arg.env(variable(&name)).hide_env_values(true),
        false => arg,
    }
}

fn switch(arg: Arg, default: &'static str) -> Arg {
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value(default)
        .hide_possible_values(true)
        .hide_default_value(default == "false")
        .value_name("BOOL")
        .value_parser(ValueParser::new(number::switch))
}

/// The variable that counts for a flag: ours, where it is set. The parser keeps names for as long as the program runs.
fn variable(flag: &str) -> &'static str {
    let flag = flag.to_uppercase().replace('-', "_");
    let ours = format!("PINTLECTL_{flag}");
    let counts = if env::var_os(&ours).is_some() { ours } else { format!("ETCDCTL_{flag}") };
    counts.leak()
}

/// The global flags as variables with their values. A password is not shown.
pub fn settings(command: &Command, matches: &ArgMatches) -> impl Iterator<Item = String> {
    let values = |arg: &Arg| {
        let id = arg.get_id().as_str();
        let values = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        match id {
            "password" | "auth_jwt_token" => values.map(|_| "…".to_string()).collect::<Vec<String>>().join(","),
            "user" => values.map(|user| user.split(':').next().unwrap_or_default().to_string()).collect(),
            _ => values.collect::<Vec<String>>().join(","),
        }
    };
    let name = |arg: &Arg| arg.get_long().unwrap_or_default().to_uppercase().replace('-', "_");
    let global = command.get_arguments().filter(|arg| arg.is_global_set());
    global.map(|arg| format!("ETCDCTL_{}={}", name(arg), values(arg))).collect::<Vec<String>>().into_iter()
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// A complaint about the command line in cobra's words. None: it is no complaint, but help.
pub fn complaint(error: &clap::Error) -> Option<Failure> {
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    let text = match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => return None,
        ErrorKind::UnknownArgument => unknown_flag(&argument),
        ErrorKind::InvalidSubcommand => {
            let name = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("unknown command \"{name}\" for \"pintlectl\"")
        }
        ErrorKind::InvalidValue | ErrorKind::TooFewValues if value.is_empty() => {
            format!("flag needs an argument: {}", as_given(flag_name(&argument)))
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let why = std::error::Error::source(error).map_or_else(|| "invalid value".to_string(), ToString::to_string);
            format!("invalid argument \"{value}\" for \"{}\" flag: {why}", flag_name(&argument))
        }
        _ => {
            // How it is used, which follows, is told by help.
            let text = error.render().to_string();
            let complaint = text.split("\n\n").next().unwrap_or(&text);
            complaint.trim_start_matches("error: ").to_string()
        }
    };
    let similar = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand]
        .into_iter()
        .find_map(|kind| context(error, kind))
        .map_or_else(String::new, |similar| format!("did you mean {similar}? "));
    Some(
        Failure::new(crate::failure::ERROR, text)
            .hint(format!("{similar}`--help` after a command tells what it takes")),
    )
}

/// `--limit <LIMIT>` and `--write-out[=<FORMAT>]` without what stands behind the name.
fn flag_name(argument: &str) -> &str {
    argument.split([' ', '[', '=']).next().unwrap_or(argument)
}

/// A flag whose argument is missing is the last word there is.
fn as_given(name: &str) -> String {
    match env::args().next_back() {
        Some(last) if last.starts_with('-') && !last.starts_with("--") => {
            format!("'{}' in {last}", last.chars().next_back().unwrap_or('-'))
        }
        _ => name.to_string(),
    }
}

fn unknown_flag(argument: &str) -> String {
    match argument.strip_prefix("--") {
        Some(_) => format!("unknown flag: {argument}"),
        None => {
            let letter = argument.trim_start_matches('-').chars().next().unwrap_or('-');
            format!("unknown shorthand flag: '{letter}' in {argument}")
        }
    }
}
