//! Headers whose values are a few words in an order: which word is the stronger.

use crate::field;

/// The words of one header.
#[derive(Debug)]
pub(crate) struct Scale {
    form: Form,
    /// Strongest first; equal ranks are equally strong.
    words: &'static [(&'static str, u8)],
}

/// How a value is written.
#[derive(Debug)]
enum Form {
    /// One word, in any case.
    Word,
    /// One word, exactly as written.
    ExactWord,
    /// A structured-field item (RFC 9651 §3.3): a word, perhaps with parameters that say where to report.
    Item,
    /// A list of words of which a browser takes the last that it knows.
    LastOfList,
}

impl Scale {
    /// How strong `value` is, or `None` where browsers would ignore it.
    pub(crate) fn rank(&self, value: &[u8]) -> Option<u8> {
        match self.form {
            Form::Word => self.rank_of(|word| value.eq_ignore_ascii_case(word)),
            Form::ExactWord => self.rank_of(|word| value == word),
            Form::Item => {
                let word = value.split(|&byte| byte == b';').next().map(field::trim)?;
                self.rank_of(|known| word == known)
            }
            Form::LastOfList => value
                .rsplit(|&byte| byte == b',')
                .map(field::trim)
                .find_map(|word| self.rank_of(|known| word.eq_ignore_ascii_case(known))),
        }
    }

    /// The words, for a message to the operator.
    pub(crate) fn words(&self) -> String {
        let mut text = String::new();
        for (word, _) in self.words {
            if !text.is_empty() {
                text.push_str(", ");
            }
            text.push_str(word);
        }
        text
    }

    fn rank_of(&self, is: impl Fn(&[u8]) -> bool) -> Option<u8> {
        let word = self.words.iter().find(|(word, _)| is(word.as_bytes()))?;
        Some(word.1)
    }
}

/// Fetch §3.6: one word only.
pub(crate) static CONTENT_TYPE_OPTIONS: Scale = Scale {
    form: Form::Word,
    words: &[("nosniff", 1)],
};

/// RFC 7034 §2.1 without `ALLOW-FROM`, which no browser honours any more.
pub(crate) static FRAME_OPTIONS: Scale = Scale {
    form: Form::Word,
    words: &[("DENY", 2), ("SAMEORIGIN", 1)],
};

/// Referrer Policy §3, ordered by what another origin learns, then by what a page over plain HTTP learns.
pub(crate) static REFERRER_POLICY: Scale = Scale {
    form: Form::LastOfList,
    words: &[
        ("no-referrer", 7),
        ("same-origin", 6),
        ("strict-origin", 5),
        ("strict-origin-when-cross-origin", 4),
        ("origin", 3),
        ("origin-when-cross-origin", 2),
        ("no-referrer-when-downgrade", 1),
        ("unsafe-url", 0),
    ],
};

/// Adobe's cross-domain policy file specification §3.4.
pub(crate) static CROSS_DOMAIN_POLICIES: Scale = Scale {
    form: Form::Word,
    words: &[
        ("none", 3),
        ("master-only", 2),
        ("by-content-type", 1),
        ("by-ftp-filename", 1),
        ("all", 0),
    ],
};

/// HTML §7.1.3.
pub(crate) static OPENER_POLICY: Scale = Scale {
    form: Form::Item,
    words: &[
        ("same-origin", 3),
        ("noopener-allow-popups", 2),
        ("same-origin-allow-popups", 1),
        ("unsafe-none", 0),
    ],
};

/// HTML §7.1.4.
pub(crate) static EMBEDDER_POLICY: Scale = Scale {
    form: Form::Item,
    words: &[
        ("require-corp", 2),
        ("credentialless", 1),
        ("unsafe-none", 0),
    ],
};

/// Fetch §3.7.
pub(crate) static RESOURCE_POLICY: Scale = Scale {
    form: Form::ExactWord,
    words: &[("same-origin", 2), ("same-site", 1), ("cross-origin", 0)],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_rank_that_browsers_give_them() {
        let table: &[(&Scale, &[u8], Option<u8>)] = &[
            (&CONTENT_TYPE_OPTIONS, b"NoSniff", Some(1)),
            (&CONTENT_TYPE_OPTIONS, b"nosniff, nosniff", None),
            (&CONTENT_TYPE_OPTIONS, b"", None),
            (&FRAME_OPTIONS, b"deny", Some(2)),
            (&FRAME_OPTIONS, b"SameOrigin", Some(1)),
            (&FRAME_OPTIONS, b"ALLOW-FROM https://a.test", None),
            (&FRAME_OPTIONS, b"\xff\x00", None),
            (&REFERRER_POLICY, b"no-referrer", Some(7)),
            (
                &REFERRER_POLICY,
                b"no-referrer, strict-origin-when-cross-origin",
                Some(4),
            ),
            (&REFERRER_POLICY, b"same-origin, of-the-future", Some(6)),
            (&REFERRER_POLICY, b"of-the-future", None),
            (&REFERRER_POLICY, b",,", None),
            (&CROSS_DOMAIN_POLICIES, b"by-ftp-filename", Some(1)),
            (&OPENER_POLICY, b"same-origin; report-to=\"x\"", Some(3)),
            (&OPENER_POLICY, b"Same-Origin", None),
            (&OPENER_POLICY, b"same-origin, same-origin", None),
            (&EMBEDDER_POLICY, b"credentialless", Some(1)),
            (&RESOURCE_POLICY, b"same-site", Some(1)),
            (&RESOURCE_POLICY, b"SAME-SITE", None),
        ];
        for (scale, value, expected) in table {
            assert_eq!(scale.rank(value), *expected, "{}", value.escape_ascii());
        }
    }
}
