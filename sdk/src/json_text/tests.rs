//! JSON texts and pointers: the RFC's own examples, what is refused, and random texts against serde_json.

use serde_json::Value;

use super::{JsonPointer, JsonText};
use crate::limits;
use crate::random::Random;

fn at<'a>(text: &JsonText<'a>, pointer: &str) -> Option<JsonText<'a>> {
    text.pointer(&JsonPointer::new(pointer).unwrap())
}

/// RFC 6901 §5.
#[test]
fn pointers_name_what_the_rfc_says() {
    let text = br#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
    let text = JsonText::parse(text).unwrap();
    for (pointer, expected) in [
        ("/foo", Some(r#"["bar", "baz"]"#)),
        ("/foo/0", Some("\"bar\"")),
        ("/foo/1", Some("\"baz\"")),
        ("/", Some("0")),
        ("/a~1b", Some("1")),
        ("/c%d", Some("2")),
        ("/e^f", Some("3")),
        ("/g|h", Some("4")),
        ("/i\\j", Some("5")),
        ("/k\"l", Some("6")),
        ("/ ", Some("7")),
        ("/m~0n", Some("8")),
        ("/foo/2", None),
        ("/foo/00", None),
        ("/foo/01", None),
        ("/foo/-", None),
        ("/foo/+1", None),
        ("/foo/-1", None),
        ("/foo/99999999999999999999999", None),
        ("/foo/0/0", None),
        ("/foo/bar", None),
        ("/a~1b/0", None),
        ("/FOO", None),
    ] {
        let found = at(&text, pointer).map(|value| std::str::from_utf8(value.as_bytes()).unwrap());
        assert_eq!(found, expected, "{pointer}");
    }
    assert_eq!(at(&text, "").unwrap().as_bytes(), text.as_bytes());
}

#[test]
fn pointers_that_are_none_are_refused() {
    for text in ["a", "#/a", "/~", "/a~", "/~2", "/~01~x", "/~é"] {
        assert!(JsonPointer::new(text).is_err(), "{text}");
    }
    let steps = |count: usize| "/a".repeat(count);
    assert!(JsonPointer::new(&steps(limits::JSON_POINTER_STEPS_MAX)).is_ok());
    assert!(JsonPointer::new(&steps(limits::JSON_POINTER_STEPS_MAX + 1)).is_err());
    let read: Result<JsonPointer, _> = serde_json::from_str("\"/a/b\"");
    assert_eq!(read.unwrap(), JsonPointer::new("/a/b").unwrap());
    let error = serde_json::from_str::<JsonPointer>("\"a\"").unwrap_err();
    assert!(error.to_string().contains("RFC 6901"), "{error}");
}

#[test]
fn what_two_readers_could_see_differently_is_refused() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let most = nested(limits::JSON_DEPTH_MAX + 1);
    let deeper = nested(limits::JSON_DEPTH_MAX + 2);
    for (text, good) in [
        (&b"{\"a\":1,\"b\":{\"a\":1}}"[..], true),
        (b"{\"a\":1,\"a\":1}", false),
        (b"{\"a\":1,\"\\u0061\":2}", false),
        (b"[{\"x\":{\"b\":1,\"a\":2,\"b\":3}}]", false),
        (b"1 2", false),
        (b"{} x", false),
        (b"", false),
        (b" ", false),
        (b"[1,]", false),
        (b"{\"a\":1,}", false),
        (b"[01]", false),
        (b"[+1]", false),
        (b"[NaN]", false),
        (b"nul", false),
        (b"\"\xff\"", false),
        (b"\"\\ud800\"", false),
        (b"\"a\nb\"", false),
        (b"\xef\xbb\xbf{}", false),
        (most.as_bytes(), true),
        (deeper.as_bytes(), false),
    ] {
        assert_eq!(
            JsonText::parse(text).is_ok(),
            good,
            "{}",
            text.escape_ascii()
        );
    }
}

#[test]
fn values_have_one_type() {
    let text = JsonText::parse(br#"[null, true, -1, 1, 1.5, "\u0031", [], {}]"#).unwrap();
    let items: Vec<JsonText<'_>> = text.items().unwrap().collect();
    let of = |pick: fn(&JsonText<'_>) -> bool| {
        let found = items.iter().zip(0..).filter(|(item, _)| pick(item));
        found.map(|(_, index)| index).collect::<Vec<_>>()
    };
    assert_eq!(of(|item| item.is_null()), [0]);
    assert_eq!(of(|item| item.as_bool() == Some(true)), [1]);
    assert_eq!(of(|item| item.as_i64() == Some(-1)), [2]);
    assert_eq!(of(|item| item.as_u64() == Some(1)), [3]);
    assert_eq!(of(|item| item.as_f64() == Some(1.5)), [4]);
    assert_eq!(of(|item| item.as_str().as_deref() == Some("1")), [5]);
    assert_eq!(of(|item| item.items().is_some()), [6]);
    assert_eq!(of(|item| item.members().is_some()), [7]);
}

/// A list of many keys is checked in no more than a moment: no key is compared with all others.
#[test]
fn many_keys_are_checked() {
    let keys: Vec<String> = (0..200_000).map(|key| format!("\"{key}\":0")).collect();
    let text = format!("{{{}}}", keys.join(","));
    let text = JsonText::parse(text.as_bytes()).unwrap();
    assert_eq!(at(&text, "/199999").unwrap().as_u64(), Some(0));
}

/// Random texts of JSON's own marks: what we take, serde_json takes as well and sees the same in it.
#[test]
fn agrees_with_serde_json() {
    const PIECES: [&str; 24] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"b\"",
        "\"\\u0061\"",
        "\"\\\"\"",
        "1",
        "-2",
        "0.5",
        "1e3",
        "true",
        "null",
        " ",
        "\n",
        "\"",
        "\\",
        "a",
        "\"\\ud83d\\ude00\"",
        "0",
        "\"é\"",
    ];
    let mut random = Random::new(8);
    let mut taken = 0;
    for _ in 0..200_000 {
        let mut text = String::new();
        if random.below(2) == 0 {
            text = random_value(&mut random, 3);
        } else {
            for _ in 0..random.below(8) {
                text.push_str(PIECES[random.below(PIECES.len())]);
            }
        }
        let Ok(ours) = JsonText::parse(text.as_bytes()) else {
            continue;
        };
        taken += 1;
        let theirs: Value = match serde_json::from_str(&text) {
            Ok(theirs) => theirs,
            Err(error) if error.to_string().contains("number out of range") => continue,
            Err(error) => panic!("{text}: {error}"),
        };
        same(&ours, &theirs, &text);
    }
    assert!(taken > 50_000, "{taken}");
}

fn random_value(random: &mut Random, depth: usize) -> String {
    let kinds = if depth == 0 { 4 } else { 6 };
    match random.below(kinds) {
        0 => "null".into(),
        1 => format!("{}", random.below(1000)),
        2 => format!("\"k{}\"", random.below(3)),
        3 => "\"\\\\\\\"\\u00e9\"".into(),
        4 => {
            let items: Vec<String> = (0..random.below(4))
                .map(|_| random_value(random, depth - 1))
                .collect();
            format!("[ {} ]", items.join(" ,"))
        }
        _ => {
            let members: Vec<String> = (0..random.below(4))
                .map(|key| format!("\"k{key}\" : {}", random_value(random, depth - 1)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
    }
}

fn same(ours: &JsonText<'_>, theirs: &Value, text: &str) {
    match theirs {
        Value::Null => assert!(ours.is_null(), "{text}"),
        Value::Bool(value) => assert_eq!(ours.as_bool(), Some(*value), "{text}"),
        Value::Number(number) => {
            assert_eq!(ours.as_u64(), number.as_u64(), "{text}");
            assert_eq!(ours.as_i64(), number.as_i64(), "{text}");
            // serde_json's floats are the nearest but for the last digit.
            let (ours, theirs) = (ours.as_f64().unwrap(), number.as_f64().unwrap());
            assert!((ours - theirs).abs() <= theirs.abs() * 1e-14, "{text}");
        }
        Value::String(value) => {
            assert_eq!(ours.as_str().as_deref(), Some(value.as_str()), "{text}")
        }
        Value::Array(values) => {
            let items: Vec<_> = ours.items().unwrap().collect();
            assert_eq!(items.len(), values.len(), "{text}");
            for (ours, theirs) in items.iter().zip(values) {
                same(ours, theirs, text);
            }
        }
        Value::Object(values) => {
            let members: Vec<_> = ours.members().unwrap().collect();
            assert_eq!(members.len(), values.len(), "{text}");
            for (key, ours) in &members {
                same(ours, &values[key.as_ref()], text);
            }
        }
    }
}

#[test]
fn any_bytes_are_read_or_refused() {
    let mut random = Random::new(9);
    for _ in 0..100_000 {
        let bytes = random.bytes(32);
        if let Ok(text) = JsonText::parse(&bytes) {
            let _ = (
                text.members().map(Iterator::count),
                text.items().map(Iterator::count),
            );
        }
    }
}
