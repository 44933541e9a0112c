//! txn: comparisons and operations, line by line from standard input. Source: etcd,
//! `etcdctl/ctlv3/command/txn_command.go`.
//!
//! Three blocks, each ended by an empty line: comparisons, what is done when all of them hold, what is done when one
//! does not.
//!
//! ```text
//! mod("key1") > "0"
//!
//! put key1 "overwritten"
//!
//! put key1 "created"
//!
//! ```

use std::{
    ffi::OsString,
    io::{self, BufRead},
};

use clap::{Args, FromArgMatches as _, Subcommand};
use client::{Compare, Comparison, Op};

use crate::{
    Context, cobra,
    failure::{self, Failure},
    keys, line, number,
    print::{go::quote, print_line},
};

#[derive(Args)]
#[command(after_help = "\
Three blocks of lines, each ended by an empty one:
  comparisons     value(\"k\") = \"v\", mod(\"k\") > \"0\"; also version, create, lease; = != < >
  if all hold     put, get, del with their arguments
  if one does not put, get, del with their arguments")]
pub struct Txn {
    /// Say what comes next.
    #[arg(short, long)]
    interactive: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

impl Txn {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        if !self.args.is_empty() {
            return Err(failure::bad_arguments("txn command does not accept argument").into());
        }
        let prompt = |text: &str| if self.interactive { print_line(text) } else { Ok(()) };
        let mut input = io::stdin().lock();
        prompt("compares:")?;
        let txn = block(&mut input, comparison)?.into_iter().fold(client::Txn::new(), client::Txn::when);
        prompt("success requests (get, put, del):")?;
        let txn = block(&mut input, operation)?.into_iter().fold(txn, client::Txn::then);
        prompt("failure requests (get, put, del):")?;
        let txn = block(&mut input, operation)?.into_iter().fold(txn, client::Txn::otherwise);
        let answer = context.client.txn(txn).await?;
        context.print(&answer)
    }
}

/// What lines up to an empty one say. A line that says nothing good is the end at once, whatever follows.
fn block<T>(input: &mut impl BufRead, parse: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    let mut parsed = Vec::new();
    loop {
        let mut line = String::new();
        let read = input.read_line(&mut line).map_err(|error| failure::invalid_input(error.to_string()))?;
        if read == 0 || !line.ends_with('\n') {
            return Err(failure::invalid_input("EOF")
                .hint("a transaction has three blocks: comparisons, operations, operations; an empty line ends each"));
        }
        match line.trim() {
            "" => return Ok(parsed),
            line => parsed.push(parse(line)?),
        }
    }
}

/// `mod("key") > "0"` in its parts.
#[derive(Default)]
struct Scanned {
    key: Option<Vec<u8>>,
    operator: Option<String>,
    value: Option<Vec<u8>>,
}

impl Scanned {
    /// Reads as far as it can.
    fn new(text: &str) -> Scanned {
        let mut scanned = Scanned::default();
        let Some((key, rest)) = quoted(text) else { return scanned };
        scanned.key = Some(key);
        let Some(rest) = rest.strip_prefix(')') else { return scanned };
        let rest = rest.trim_start();
        let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
        if length == 0 {
            return scanned;
        }
        scanned.operator = Some(rest[..length].to_string());
        scanned.value = quoted(rest[length..].trim_start()).map(|(value, _)| value);
        scanned
    }
}

fn quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let length = line::quoted_length(text).filter(|_| text.starts_with('"'))?;
    Some((line::unquote(&text[..length]).ok()?, &text[length..]))
}

fn comparison(line: &str) -> Result<Comparison, Failure> {
    let malformed = |more: &str| failure::invalid_input(format!("malformed comparison: {line}{more}"));
    let (target, rest) = line.split_once('(').ok_or_else(|| malformed(""))?;
    let (key, operator, value) = match Scanned::new(rest) {
        Scanned { key: Some(key), operator: Some(operator), value: Some(value) } => (key, operator, value),
        Scanned { key, operator, value } => {
            let (key, value) = (quote(&key.unwrap_or_default()), quote(&value.unwrap_or_default()));
            return Err(malformed(&format!("; got {target}({key}) {} {value}", operator.unwrap_or_default())));
        }
    };
    let invalid = || failure::invalid_input(format!("invalid txn compare request: {line}"));
    let integer = |base| {
        let text = std::str::from_utf8(&value).map_err(|_| invalid())?;
        number::int(text, base).map_err(|_| invalid())
    };
    let unknown_operator = || malformed(&format!(" (unknown operator {operator}; there are = != < >)"));
    let compare = |compare: Compare<i64>, with: i64| compared(compare, &operator, with).ok_or_else(unknown_operator);
    match target {
        "ver" | "version" => compare(Compare::version(key), integer(10)?),
        "c" | "create" => compare(Compare::create_revision(key), integer(10)?),
        "m" | "mod" => compare(Compare::mod_revision(key), integer(10)?),
        "lease" => compare(Compare::lease(key), integer(16)?),
        "val" | "value" => compared(Compare::value(key), &operator, value.clone()).ok_or_else(unknown_operator),
        _ => Err(malformed(&format!(" (unknown target {target})"))),
    }
}

fn compared<T>(compare: Compare<T>, operator: &str, with: impl Into<T>) -> Option<Comparison> {
    match operator {
        "=" => Some(compare.equals(with)),
        "!=" => Some(compare.differs_from(with)),
        ">" => Some(compare.greater_than(with)),
        "<" => Some(compare.less_than(with)),
        _ => None,
    }
}

#[derive(Subcommand)]
enum Operation {
    Put(keys::Put),
    Get(keys::Get),
    Del(keys::Del),
}

fn operation(line: &str) -> Result<Op, Failure> {
    let words = line::split(line).map_err(failure::invalid_input)?;
    if words.len() < 2 {
        return Err(failure::invalid_input(format!("invalid txn compare request: {line}")));
    }
    let invalid = || failure::invalid_input(format!("invalid txn request: {line}"));
    let command = Operation::augment_subcommands(clap::Command::new("txn").no_binary_name(true));
    let matches = cobra::behave(command).try_get_matches_from::<_, OsString>(words).map_err(|_| invalid())?;
    match Operation::from_arg_matches(&matches).map_err(|_| invalid())? {
        Operation::Put(put) => put.request(|| None).map(Op::put),
        Operation::Get(get) => get.request().map(Op::get),
        Operation::Del(del) => del.request().map(Op::delete),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_read_with_their_short_names_and_escapes() {
        for good in [
            r#"mod("a") > "0""#,
            r#"m("a") = "7""#,
            r#"val("a b\n") != "x\"y""#,
            r#"create("a")  <  "3""#,
            r#"ver("a") = "1""#,
            r#"lease("a") = "12ab""#,
        ] {
            assert!(comparison(good).is_ok(), "{good}");
        }
        let refused = |line: &str| comparison(line).err().expect("it is refused").to_string();
        assert_eq!(refused("mod"), "malformed comparison: mod");
        assert_eq!(refused("mod(\"a\") >"), "malformed comparison: mod(\"a\") >; got mod(\"a\") > \"\"");
        assert_eq!(refused("ver(a) > \"1\""), "malformed comparison: ver(a) > \"1\"; got ver(\"\")  \"\"");
        assert_eq!(refused("foo(\"a\") > \"3\""), "malformed comparison: foo(\"a\") > \"3\" (unknown target foo)");
        assert_eq!(refused("ver(\"a\") > \"x\""), "invalid txn compare request: ver(\"a\") > \"x\"");
        assert!(refused("ver(\"a\") ! \"1\"").contains("unknown operator !"));
    }

    #[test]
    fn operations_have_the_arguments_of_their_commands() {
        for good in
            ["put a b", "put a \"b c\" --lease=1f", "get a --prefix --limit 3", "del a b", "get \"\" --from-key=true"]
        {
            assert!(operation(good).is_ok(), "{good}");
        }
        let refused = |line: &str| operation(line).err().expect("it is refused").to_string();
        assert_eq!(refused("put"), "invalid txn compare request: put");
        assert_eq!(refused("foo a b"), "invalid txn request: foo a b");
        assert_eq!(refused("get a --rev=x"), "invalid txn request: get a --rev=x");
        assert!(refused("del a b c").starts_with("del command needs one argument"));
        assert!(refused("put a").starts_with("put command needs"));
    }

    #[test]
    fn a_block_ends_with_an_empty_line() {
        let mut input = io::Cursor::new("a\n b \n\nc\n");
        let as_it_is = |line: &str| Ok(line.to_string());
        assert_eq!(block(&mut input, as_it_is).unwrap(), ["a", "b"]);
        assert_eq!(block(&mut input, as_it_is).unwrap_err().to_string(), "EOF");
    }
}
