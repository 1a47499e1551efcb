//! One layout for policy files: indentation, spacing and quotes, with comments and the order of keys as they are.
//!
//! pretty_yaml lays out; whatever it makes of a file, its meaning is read before and after, and a file whose meaning would change is left alone.

use pretty_yaml::config::{FormatOptions, LanguageOptions, LayoutOptions};

use crate::policy::{Node, NodeValue};

/// Beyond it, a flow list or mapping is broken into lines.
const WIDTH: usize = 120;

/// The text in the one layout, or why it cannot be had, with its line.
///
/// # Errors
///
/// The text is not YAML as policies are, or it would mean something else.
pub(crate) fn lay_out(text: &str) -> Result<String, (u64, String)> {
    if text.trim().is_empty() {
        return Ok(text.to_owned());
    }
    let before = Node::parse(text)?;
    let options = FormatOptions {
        layout: LayoutOptions {
            print_width: WIDTH,
            ..LayoutOptions::default()
        },
        language: LanguageOptions {
            trailing_comma: false,
            brace_spacing: false,
            ..LanguageOptions::default()
        },
    };
    let laid_out = std::panic::catch_unwind(|| pretty_yaml::format_text(text, &options));
    let laid_out = match laid_out {
        Ok(Ok(laid_out)) => laid_out,
        Ok(Err(error)) => {
            let said = error.to_string();
            let said = said.lines().next().unwrap_or_default().to_lowercase();
            return Err((1, format!("cannot be laid out: {said}")));
        }
        Err(_) => return Err((1, "cannot be laid out".into())),
    };
    let after = Node::parse(&laid_out);
    let is_same = after.is_ok_and(|after| means_the_same(&before, &after));
    if !is_same || comments(text) != comments(&laid_out) {
        return Err((
            1,
            "left alone: its meaning or a comment would not survive".into(),
        ));
    }
    Ok(laid_out)
}

/// The same values in the same order, wherever they stand.
fn means_the_same(one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (NodeValue::Sequence(one), NodeValue::Sequence(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| means_the_same(a, b))
        }
        (NodeValue::Mapping(one), NodeValue::Mapping(other)) => {
            let mut pairs = one.iter().zip(other);
            one.len() == other.len()
                && pairs.all(|(a, b)| a.key == b.key && means_the_same(&a.node, &b.node))
        }
        (one, other) => one == other,
    }
}

/// How many `#` there are that could begin a comment; those in text are as many before as after.
fn comments(text: &str) -> usize {
    let could_begin = |line: &str| {
        let mut previous = ' ';
        let mut count = 0_usize;
        for c in line.chars() {
            count += usize::from(c == '#' && previous.is_whitespace());
            previous = c;
        }
        count
    };
    text.lines().map(could_begin).sum()
}

#[cfg(test)]
mod tests {
    use super::lay_out;

    #[test]
    fn layout_changes_and_meaning_stays() {
        for (text, expected) in [
            ("a:   1\nb: [ 1,2 ]\n", "a: 1\nb: [1, 2]\n"),
            ("a: 1", "a: 1\n"),
            ("", ""),
            ("a: 1   \n\n\n\nb: 2\n\n", "a: 1\n\nb: 2\n"),
            (
                "# top\na:   # of a\n    - { b: 'x',c: \"y\" }   # of the item\n# end\n",
                "# top\na: # of a\n  - {b: \"x\", c: \"y\"} # of the item\n# end\n",
            ),
            ("z: 1\na: 2\n", "z: 1\na: 2\n"),
            ("a: \"1.3\"\nb: 1.30\n", "a: \"1.3\"\nb: 1.30\n"),
            (
                "a: |\n    two\n    lines\nb: >-\n  folded\n  text\n",
                "a: |\n  two\n  lines\nb: >-\n  folded\n  text\n",
            ),
            ("a: &x {b: 1}\nc: *x\n", "a: &x {b: 1}\nc: *x\n"),
        ] {
            let laid_out = lay_out(text);
            assert_eq!(laid_out.as_deref(), Ok(expected), "{text:?}");
            assert_eq!(
                lay_out(expected).as_deref(),
                Ok(expected),
                "twice: {text:?}"
            );
        }
    }

    #[test]
    fn what_would_lose_its_meaning_is_left_alone() {
        // Blanks at the end of a line are part of a block of text, and pretty_yaml takes them away.
        let (_, reason) = lay_out("a: |\n  two  \n  lines\n").expect_err("it lays this out");
        assert!(reason.starts_with("left alone"), "{reason}");
    }

    #[test]
    fn what_is_no_yaml_is_refused_with_its_line() {
        for (text, line) in [
            ("a: 1\nb: [\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: 1\n---\nb: 2\n", 1),
        ] {
            let (at, reason) = lay_out(text).expect_err(text);
            assert!(at >= line && !reason.is_empty(), "{text:?}: {at}: {reason}");
        }
    }
}
