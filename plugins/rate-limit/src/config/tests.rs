//! Configurations, good and bad.

use std::time::SystemTime;

use portcullis_sdk::testing::Harness;

use super::*;
use crate::RateLimit;

fn check(json: &str) -> Result<Checked, String> {
    let config: Config =
        portcullis_sdk::serde_json::from_str(json).map_err(|error| error.to_string())?;
    config.check().map_err(|error| error.to_string())
}

/// So many limits.
fn limits(count: usize) -> String {
    let limits: Vec<String> = (0..count)
        .map(|i| format!(r#"{{"name": "{i}", "requests": 1, "per": "1s"}}"#))
        .collect();
    format!(r#"{{"limits": [{}]}}"#, limits.join(","))
}

/// So many sources of a key.
fn sources(count: usize) -> String {
    format!(
        r#"{{"key": [{}]}}"#,
        vec![r#"{"header": "a"}"#; count].join(",")
    )
}

/// A scope of so many bytes.
fn scope(bytes: usize) -> String {
    format!(r#"{{"scope": "{}"}}"#, "a".repeat(bytes))
}

/// A header's name of so many bytes.
fn header(bytes: usize) -> String {
    format!(r#"{{"key": {{"header": "{}"}}}}"#, "a".repeat(bytes))
}

#[test]
fn bounds_can_be_reached() {
    let rows = [
        limits(4),
        sources(4),
        scope(32),
        header(128),
        r#"{"max_keys": 32}"#.into(),
        r#"{"max_keys": 524288, "cost": 100, "ipv6_prefix": 32}"#.into(),
        r#"{"limits": [{"name": "a", "requests": 1000000, "per": "31d", "burst": 1000000}], "ipv6_prefix": 128}"#.into(),
    ];
    for json in rows {
        assert_eq!(check(&json).err(), None, "{json}");
    }
}

#[test]
fn mistakes_are_named() {
    let limit = |field: &str| {
        format!(
            r#"{{"limits": [{{"name": "a", "requests": 2, "per": "60s"}}, {{"name": "b", {field}}}]}}"#
        )
    };
    let rows = [
        (r#"{"limit": []}"#.into(), "limit"),
        (r#"{"limits": []}"#.into(), "limits: must hold from 1 to 4 limits"),
        (r#"{"limits": [{"name": "a"}]}"#.into(), "requests"),
        (limit(r#""requests": 0, "per": "60s""#), "limits[1].requests: must be from 1 to 1000000, is 0"),
        (limit(r#""requests": -1, "per": "60s""#), "limits[1].requests: "),
        (limit(r#""requests": 1000001, "per": "60s""#), "limits[1].requests: must be from 1 to 1000000, is 1000001"),
        (limit(r#""requests": 1, "per": "60""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "0s""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "+1s""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "s""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": """#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "1µ""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "32d""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": "99999999999999999999d""#), "limits[1].per: must be whole seconds"),
        (limit(r#""requests": 1, "per": 60"#), "limits[1].per: "),
        (limit(r#""requests": 5, "per": "1s", "burst": 0"#), "limits[1].burst: must be from 1 to requests, which is 5"),
        (limit(r#""requests": 5, "per": "1s", "burst": 6"#), "limits[1].burst: must be from 1 to requests, which is 5"),
        (r#"{"limits": [{"name": "a", "requests": 2, "per": "1s"}, {"name": "a", "requests": 3, "per": "1s"}]}"#.into(), "limits[1].name: `a` is taken"),
        (r#"{"limits": [{"name": "", "requests": 2, "per": "1s"}]}"#.into(), "limits[0].name: must be from 1 to 32 letters"),
        (r#"{"limits": [{"name": "a\"b", "requests": 2, "per": "1s"}]}"#.into(), "limits[0].name: must be from 1 to 32 letters"),
        (limits(5), "limits: must hold from 1 to 4 limits"),
        (sources(5), "key: must name from 1 to 4 sources"),
        (scope(33), "scope: must be from 1 to 32 letters"),
        (header(129), "key.header: must be the name of a header"),
        (r#"{"scope": "a/b"}"#.into(), "scope: must be from 1 to 32 letters"),
        (r#"{"cost": 0}"#.into(), "cost: must be from 1 to 100, is 0"),
        (r#"{"cost": 101}"#.into(), "cost: must be from 1 to 100, is 101"),
        (r#"{"max_keys": 31}"#.into(), "max_keys: must be from 32 to 524288, is 31"),
        (r#"{"max_keys": 524289}"#.into(), "max_keys: must be from 32 to 524288, is 524289"),
        (r#"{"ipv6_prefix": 31}"#.into(), "ipv6_prefix: must be from 32 to 128, is 31"),
        (r#"{"ipv6_prefix": 129}"#.into(), "ipv6_prefix: must be from 32 to 128, is 129"),
        (r#"{"fields": "sometimes"}"#.into(), "fields: "),
        (r#"{"key_missing": "allow"}"#.into(), "key_missing: "),
        (r#"{"key": []}"#.into(), "key: must name from 1 to 4 sources"),
        (r#"{"key": 7}"#.into(), "expected `address`, `{property: …}`"),
        (r#"{"key": "property"}"#.into(), "expected `address`, `{property: …}`"),
        (r#"{"key": {"cookie": "sid"}}"#.into(), "cookie"),
        (r#"{"key": ["address", {"header": "x-user"}]}"#.into(), "key[1]: is never reached"),
        (r#"{"key": {"header": "x user"}}"#.into(), "key.header: must be the name of a header"),
        (r#"{"key": {"header": ":path"}}"#.into(), "key.header: must be the name of a header"),
        (r#"{"key": {"property": ""}}"#.into(), "key.property: must be the name of a property"),
    ];
    for (json, expected) in rows {
        let mut harness = Harness::<RateLimit>::new(SystemTime::UNIX_EPOCH);
        let error = harness
            .configure(&json)
            .err()
            .unwrap_or_else(|| panic!("accepted: {json}"));
        assert!(error.contains(expected), "{json}: {error}");
    }
}

#[test]
fn keys_may_be_one_or_a_list() {
    let user = || Source::property("jwt.sub").unwrap();
    let header = || Source::header("x-api-key").unwrap();
    let rows = [
        ("{}", vec![user(), Source::Address]),
        (r#"{"key": "address"}"#, vec![Source::Address]),
        (
            r#"{"key": {"property": "jwt.sub"}, "key_missing": "refuse"}"#,
            vec![user()],
        ),
        (
            r#"{"key": [{"header": "X-Api-Key"}, {"property": "jwt.sub"}]}"#,
            vec![header(), user(), Source::Address],
        ),
        (
            r#"{"key": [{"header": "x-api-key"}, "address"], "key_missing": "refuse"}"#,
            vec![header(), Source::Address],
        ),
    ];
    for (json, expected) in rows {
        assert_eq!(check(json).unwrap().key.sources(), expected, "{json}");
    }
}

/// Instances count together only where all that a counter means is equal.
#[test]
fn tables_are_shared_by_equals_only() {
    let plain = check("{}").unwrap().prefix;
    let rows = [
        (r#"{"cost": 5}"#, true),
        (r#"{"fields": "never"}"#, true),
        (r#"{"key": [{"property": "jwt.sub"}, "address"]}"#, true),
        (r#"{"key": "address"}"#, false),
        (r#"{"scope": "b"}"#, false),
        (r#"{"max_keys": 1000}"#, false),
        (r#"{"ipv6_prefix": 56}"#, false),
        (
            r#"{"limits": [{"name": "peruser", "requests": 100, "per": "1m"}]}"#,
            true,
        ),
        (
            r#"{"limits": [{"name": "peruser", "requests": 99, "per": "60s"}]}"#,
            false,
        ),
    ];
    for (json, same) in rows {
        assert_eq!(check(json).unwrap().prefix == plain, same, "{json}");
    }
}

#[test]
fn windows_in_seconds() {
    let rows = [
        ("1s", Some(1)),
        ("90s", Some(90)),
        ("1m", Some(60)),
        ("2h", Some(7_200)),
        ("31d", Some(2_678_400)),
        ("1w", None),
        ("1.5s", None),
    ];
    for (text, expected) in rows {
        assert_eq!(window_seconds(text), expected, "{text}");
    }
}
