//! The script's text as steps.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

/// One command, and how it is run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// etcdutl in place of etcdctl
    pub offline: bool,
    /// No other program need do the same.
    pub etcdctl_alone: bool,
    pub words: Vec<String>,
    pub input: String,
    /// A name for a word of the output, counted from one.
    pub keep: Option<(String, usize)>,
    pub ends: Option<Ends>,
}

/// When a command that does not end by itself is ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ends {
    /// After so many lines; the command beside makes it print.
    AfterLines { lines: usize, beside: Vec<String> },
    /// As soon as another command, run again and again, prints something.
    WhenPrinted(Vec<String>),
}

pub fn parse(script: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, line) in script.lines().enumerate() {
        let parsed = parse_line(line, &mut steps);
        parsed.with_context(|| format!("line {} of the script", index + 1))?;
    }
    Ok(steps)
}

fn parse_line(line: &str, steps: &mut Vec<Step>) -> Result<()> {
    let Some(sign) = line.chars().next().filter(|sign| *sign != '#') else { return Ok(()) };
    let rest = line[1..].strip_prefix(' ').unwrap_or_default();
    if matches!(sign, '$' | '%') {
        steps.push(Step { words: split(rest)?, offline: sign == '%', ..Step::default() });
        return Ok(());
    }
    let step = steps.last_mut().context("no command yet")?;
    match sign {
        '<' => step.input += &format!("{rest}\n"),
        '>' => {
            let (name, word) = rest.split_once(' ').context("a name and a number are expected")?;
            step.keep = Some((name.to_owned(), word.parse()?));
        }
        '!' => {
            let (lines, beside) = rest.split_once(' ').unwrap_or((rest, ""));
            step.ends = Some(Ends::AfterLines { lines: lines.parse()?, beside: split(beside)? });
        }
        '*' => step.etcdctl_alone = true,
        '~' => step.ends = Some(Ends::WhenPrinted(split(rest)?)),
        _ => bail!("a line cannot begin with {sign:?}"),
    }
    Ok(())
}

/// Splits at spaces that are not within double quotes.
fn split(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in text.chars() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    ensure!(!quoted, "a quote is open");
    words.extend(word);
    Ok(words)
}

/// Puts kept words in place of their names.
pub fn fill_in(words: &[String], kept: &HashMap<String, String>) -> Vec<String> {
    let fill = |word: &String| {
        kept.iter().fold(word.clone(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
    };
    words.iter().map(fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_step_by_step() {
        let steps =
            parse("# why\n\n$ put \"a b\" \"\"\n> name 2\n$ watch a\n! 3 put a 1\n$ txn\n< x\n<\n% version\n~ get a\n")
                .unwrap();
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[0].words, ["put", "a b", ""]);
        assert_eq!(steps[0].keep, Some(("name".to_owned(), 2)));
        let ends = Ends::AfterLines { lines: 3, beside: vec!["put".into(), "a".into(), "1".into()] };
        assert_eq!(steps[1].ends, Some(ends));
        assert_eq!(steps[2].input, "x\n\n");
        assert!(steps[3].offline && !steps[2].offline);
        assert_eq!(steps[3].ends, Some(Ends::WhenPrinted(vec!["get".into(), "a".into()])));
        assert!(parse("? x").is_err());
        assert!(parse("$ put \"a").is_err());
    }

    #[test]
    fn the_script_names_only_what_it_has_kept() {
        let given = ["dir", "endpoint", "follower"].into_iter().map(|name| (name.to_owned(), String::new()));
        let mut kept: HashMap<String, String> = given.collect();
        for step in parse(include_str!("script.txt")).unwrap() {
            let words = fill_in(&step.words, &kept).join(" ");
            assert!(!words.contains('{'), "{words}");
            kept.extend(step.keep.map(|(name, _)| (name, String::new())));
        }
    }
}
