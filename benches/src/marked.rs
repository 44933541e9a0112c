//! Documents of which a part is generated: what stands between its marks is replaced, the rest is kept.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, bail};

/// Replaces the part of that name in a file, or puts it at the end of one that has no such part.
pub fn replace(path: &Path, name: &str, part: &str) -> anyhow::Result<()> {
    let before = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("read {}", path.display()))?,
    };
    let after = replaced(&before, name, part).with_context(|| format!("{}", path.display()))?;
    fs::write(path, after).with_context(|| format!("write {}", path.display()))
}

fn replaced(text: &str, name: &str, part: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->\n"));
    let part = format!("{begin}\n{}\n\n{end}", part.trim());
    let places = |mark: &str| text.match_indices(mark).map(|(at, _)| at).collect::<Vec<usize>>();
    match (&places(&begin)[..], &places(&end)[..]) {
        ([], []) => Ok(format!("{}\n\n{part}", text.trim_end())),
        ([from], [to]) if from < to => Ok(format!("{}{part}{}", &text[..*from], &text[to + end.len()..])),
        _ => bail!("the marks `{}` and `{}` are not there once each, in this order", begin.trim(), end.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_the_marks_is_replaced_and_the_rest_is_kept() {
        let first = replaced("# Title\n", "a", "one").unwrap();
        assert_eq!(first, "# Title\n\n<!-- begin a -->\n\none\n\n<!-- end a -->\n");
        let with_tail = format!("{first}\ntail\n");
        assert_eq!(replaced(&with_tail, "a", "two").unwrap(), with_tail.replace("one", "two"));
        assert!(replaced(&with_tail, "b", "two").unwrap().starts_with(&with_tail));
    }

    #[test]
    fn marks_that_do_not_belong_together_are_refused() {
        for text in ["<!-- begin a -->\n", "<!-- end a -->\n<!-- begin a -->\n", "<!-- end a -->\n"] {
            assert!(replaced(text, "a", "x").is_err(), "{text}");
        }
    }
}
