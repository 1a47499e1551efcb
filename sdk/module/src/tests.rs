//! Modules written by hand, finished or refused. Real ones are finished by the builds and by `portcullis build`.

use super::*;

/// A control whose `proxy_on_log` nobody wants and whose `unused` import only that calls.
fn linked(section: &str, extra: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            (@custom "portcullis" "{section}")
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (import "env" "proxy_done" (func $done (result i32)))
            (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func $_ZN4core9panicking5panic17h0E (param i32) (drop (call $done)))
            (func (export "_initialize") (call $_ZN4core9panicking5panic17h0E (i32.const 0)))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (call $log (i32.const 0) (i32.const 0) (i32.const 0)))
            (func (export "proxy_on_log") (param i32) (drop (call $random (i32.const 0) (i32.const 0))))
            (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 0))
            {extra})"#
    );
    wat::parse_str(text).unwrap()
}

const SECTION_TEXT: &str = "name=gate\\nversion=1.2.3\\nsummary=A gate\\nauthenticates=1\\n\
    callbacks=proxy_on_request_headers\\nnewer=x\\n";

/// A generator with this code, and this data at 16.
fn twin(code: &str, data: &str) -> Vec<u8> {
    let extra = format!(
        r#"(data (i32.const 16) "{data}") (func (export "portcullis_schema") (result i64) {code})"#
    );
    linked(SECTION_TEXT, &extra)
}

/// The packed place of `len` bytes at 16.
fn at_16(len: usize) -> String {
    format!("(i64.const {})", 16_u64 << 32 | len as u64)
}

fn good_twin() -> Vec<u8> {
    let json = r#"{\22type\22: \22object\22}"#;
    twin(&at_16(r#"{"type": "object"}"#.len()), json)
}

#[test]
fn a_finished_module_has_what_it_needs_and_says_so() {
    let finished = finish(&linked(SECTION_TEXT, ""), &good_twin(), Names::Dropped).unwrap();
    let description = &finished.description;
    assert_eq!(description.name, "gate");
    assert_eq!(description.version, "1.2.3");
    assert_eq!(description.summary, "A gate");
    assert!(description.authenticates);
    assert_eq!(description.callbacks, ["proxy_on_request_headers"]);
    // What only the cut callback and a panic called is gone.
    assert_eq!(
        description.capabilities,
        ["proxy_log", "proxy_on_request_headers"]
    );
    assert_eq!(
        description.schema.as_deref(),
        Some(r#"{"type":"object"}"#),
        "compact"
    );
    assert_eq!(
        finished.exports,
        [
            "_initialize",
            "memory",
            "proxy_on_memory_allocate",
            "proxy_on_request_headers"
        ]
    );
    let again = Description::read(&finished.bytes).unwrap();
    assert_eq!(again.as_ref(), Some(description));
    assert_eq!(
        finished.bytes_without_schema() + r#"{"type":"object"}"#.len(),
        finished.bytes.len()
    );
    let has = |bytes: &[u8], name: &str| bytes.windows(name.len()).any(|at| at == name.as_bytes());
    assert!(!has(&finished.bytes, "panicking"));
    let named = finish(&linked(SECTION_TEXT, ""), &good_twin(), Names::Kept).unwrap();
    assert!(has(&named.bytes, "panicking"));
}

#[test]
fn a_narrowed_module_has_fewer_callbacks_and_the_same_description() {
    let section = "name=gate\\nversion=1\\nauthenticates=1\\nawaits_body=1\\n\
        callbacks=proxy_on_request_headers,proxy_on_log\\n";
    let finished = finish(&linked(section, ""), &good_twin(), Names::Dropped).unwrap();
    assert!(finished.exports.contains(&"proxy_on_log".into()));
    let keep = ["proxy_on_request_headers".into(), "proxy_on_tick".into()];
    let narrowed = narrow(&finished.bytes, &keep).unwrap();
    assert_eq!(narrowed.description.callbacks, ["proxy_on_request_headers"]);
    assert!(!narrowed.exports.contains(&"proxy_on_log".into()));
    assert!(narrowed.bytes.len() < finished.bytes.len());
    let capabilities = ["proxy_log", "proxy_on_request_headers"];
    assert_eq!(narrowed.description.capabilities, capabilities);
    let same = Description {
        callbacks: finished.description.callbacks.clone(),
        capabilities: finished.description.capabilities.clone(),
        ..narrowed.description
    };
    assert_eq!(same, finished.description);
}

#[test]
fn a_module_without_a_generator_has_no_schema() {
    let plain = linked(SECTION_TEXT, "");
    let finished = finish(&plain, &plain, Names::Dropped).unwrap();
    assert_eq!(finished.description.schema, None);
}

#[test]
fn a_hash_map_in_a_generator_gets_its_seed() {
    let code = format!(
        "(drop (call $random (i32.const 100) (i32.const 16))) {}",
        at_16(2)
    );
    let finished = finish(
        &linked(SECTION_TEXT, ""),
        &twin(&code, "{}"),
        Names::Dropped,
    );
    assert_eq!(finished.unwrap().description.schema.as_deref(), Some("{}"));
}

#[test]
fn what_cannot_be_finished_is_told() {
    let good = linked(SECTION_TEXT, "");
    let nameless = wat::parse_str(format!(
        r#"(module (@custom "portcullis" "{SECTION_TEXT}") (memory (export "memory") 1))"#
    ))
    .unwrap();
    let prints = linked(
        SECTION_TEXT,
        r#"(func $_RNvNtNtCs_3std2io5stdio6__print (param i32))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (call $_RNvNtNtCs_3std2io5stdio6__print (i32.const 0)) (i32.const 1))"#,
    );
    let mut names = nameless.clone();
    names.truncate(20);
    for (linked, reason) in [
        (b"no module".to_vec(), "no WebAssembly module"),
        (names, "no WebAssembly module"),
        (wat::parse_str("(module)").unwrap(), "export!"),
        (linked("version=1\\n", ""), "has no name"),
        (linked("name=x\\n", ""), "has no version"),
        (
            linked("name=x\\nversion=1\\nauthenticates=yes\\n", ""),
            "neither 0 nor 1",
        ),
        (linked("\\ff", ""), "is not UTF-8"),
        (nameless, "have no names"),
        (prints, "it prints"),
    ] {
        let error = finish(&linked, &good, Names::Dropped).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn a_schema_that_cannot_be_made_is_told() {
    let pages = SCHEMA_PAGES;
    for (code, data, reason) in [
        (at_16(0), "", "the SDK's feature `schema`"),
        (at_16(4), "nope", "no JSON object"),
        (at_16(2), "[]", "no JSON object"),
        ("(i64.const 0x0001000000000001)".into(), "", "outside"),
        ("(i64.const 0xffffffff)".into(), "", "more than"),
        ("unreachable".into(), "", "unreachable"),
        ("(loop (br 0)) (i64.const 0)".into(), "", "fuel"),
        (
            "(drop (call $log (i32.const 0) (i32.const 0) (i32.const 0))) (i64.const 0)".into(),
            "",
            "asks the host (env.proxy_log)",
        ),
        (
            "(drop (call $random (i32.const -1) (i32.const 16))) (i64.const 0)".into(),
            "",
            "outside",
        ),
        (
            // Memory beyond the bound is not given: -1.
            format!(
                "(if (i32.ne (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable)) {}",
                at_16(2)
            ),
            "[]",
            "no JSON object",
        ),
    ] {
        let error = finish(
            &linked(SECTION_TEXT, ""),
            &twin(&code, data),
            Names::Dropped,
        )
        .unwrap_err();
        let ModuleError::Schema(told) = &error else {
            panic!("{code}: {error}");
        };
        assert!(told.contains(reason), "{code}: {told}");
    }
}

/// Pages of 64 KiB that a generator does not get on top of its one.
const SCHEMA_PAGES: usize = crate::limits::SCHEMA_MEMORY_BYTES_MAX / (64 * 1024);

#[test]
fn a_section_that_is_no_schema_is_told() {
    let broken = linked(SECTION_TEXT, r#"(@custom "portcullis.schema" "{")"#);
    assert!(matches!(
        Description::read(&broken),
        Err(ModuleError::Schema(_))
    ));
    assert_eq!(
        Description::read(&wat::parse_str("(module)").unwrap()).unwrap(),
        None
    );
}
