//! Policies and files that somebody wrote to exhaust us, to make us wait, or to deceive who reads the problems.

use std::path::Path;

use super::{HEAD, folder, parse};
use crate::policy::Policy;

#[test]
fn what_would_exhaust_the_reader_is_refused() {
    let mut failures = String::new();
    let levels = |open: &str, close: &str| {
        format!("x: {}1{}\n", open.repeat(100_000), close.repeat(100_000))
    };
    let mut bomb = String::from("a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n");
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    let long = "x".repeat(1 << 20);
    let long = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 99].join(","));
    let filters = (0..257).map(|n| format!("{{name: f{n}, module: plain.wasm}},"));
    let filters: String = filters.collect();
    let values = "more than 200000 values (what an alias repeats counts again)";
    for (name, text, line, reason) in [
        ("aliases of aliases", &*bomb, 9, values),
        (
            "aliases of a long text",
            &long,
            5,
            "more than 8388608 bytes of text (what an alias repeats counts again)",
        ),
        ("an alias of itself", "x: &a [*a]\n", 4, "not YAML: "),
        ("an alias of nothing", "x: *a\n", 4, "not YAML: "),
        (
            "flow lists",
            &levels("[", "]"),
            4,
            "not YAML: recursion limit exceeded",
        ),
        (
            "flow mappings",
            &levels("{a: ", "}"),
            4,
            "nested deeper than 64 levels",
        ),
        (
            "lists in lists",
            &levels("\n- ", "").replace("- \n", "- "),
            5,
            "nested deeper than 64 levels",
        ),
        (
            "a long key",
            &format!("? {}\n: 1\n", "k".repeat(1025)),
            4,
            "policy: a key has more than 1024 bytes",
        ),
        (
            "many values",
            &format!("x: [{}]\n", "1,".repeat(200_001)),
            4,
            values,
        ),
        ("two documents", "---\na: 1\n", 4, "more than one document"),
        (
            "many filters",
            &format!("filters: [{filters}]\n"),
            4,
            "more than 256 filters",
        ),
        (
            "many clusters of a filter",
            &format!(
                "filters: [{{name: f, module: plain.wasm, clusters: [{}]}}]\n",
                "up,".repeat(10_001)
            ),
            4,
            "more than 10000 items",
        ),
        ("a NUL", "access_log: a\0b\n", 4, "not YAML: "),
        (
            "a NUL in a path",
            "access_log: \"a\\0b\"\n",
            4,
            "a path has no NUL byte",
        ),
        ("an infinite number", "workers: .inf\n", 4, "not YAML: "),
        ("bytes", "access_log: !!binary gA==\n", 4, "not YAML: "),
        (
            "a key twice below",
            "admin:\n  address: a\n  address: b\n",
            6,
            "not YAML: ",
        ),
    ] {
        let text = format!("{HEAD}{text}");
        let folder = folder();
        let problems = parse(folder.path(), &text).expect_err(name);
        let expected = format!("p.yaml:{line}: ");
        let found = problems
            .lines()
            .any(|line| line.starts_with(&expected) && line.contains(reason));
        if !found || problems.len() > 10_000 {
            let start: String = problems.chars().take(500).collect();
            failures.push_str(&format!("{name} ({} bytes): {start}\n", problems.len()));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn what_people_write_is_far_from_the_bounds() {
    let folder = folder();
    let mut text = String::from(
        "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
filters: [{name: f, module: good.wasm, configuration: {x: 1}}]
routes:
- {name: r, cluster: up, filters: {f: &own {configuration: {x: 2}}}}
",
    );
    for n in 0..5_000 {
        text.push_str(&format!(
            "- {{name: r{n}, cluster: up, prefix: /r{n}, filters: {{f: *own}}}}\n"
        ));
    }
    // As Kubernetes mounts files.
    std::os::unix::fs::symlink("plain.wasm", folder.path().join("good.wasm")).unwrap();
    let policy = parse(folder.path(), &text).unwrap();
    assert_eq!((policy.routes.len(), policy.instances.len()), (5_001, 2));
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let made = std::process::Command::new("mkfifo")
        .arg(path("fifo"))
        .status();
    assert!(made.unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    std::fs::create_dir(path("sub")).unwrap();
    std::fs::write(path("large"), vec![b'#'; (4 << 20) + 1]).unwrap();
    std::fs::write(path("latin1"), b"a: 1\nb: 2\nc: \xe9\n").unwrap();
    symlink("loop", path("loop")).unwrap();
    symlink("fifo", path("link")).unwrap();
    let special = "it is not a file but a pipe, a socket or a device";
    for (name, reason) in [
        ("fifo", special),
        ("link", special),
        ("/dev/zero", special),
        ("socket", "no such device or address"),
        ("sub", "it is a folder"),
        ("loop", "too many levels of symbolic links"),
        ("gone", "no such file"),
        ("plain.wasm/x", "not a directory"),
    ] {
        let shown = path(name).display().to_string();
        let expected = |at: &str| format!("{at}: cannot read {shown}: {reason}");
        let errors = Policy::load(path(name)).expect_err(name).to_string();
        assert!(
            errors.starts_with(&expected(&format!("{shown}:1: policy"))),
            "{errors}"
        );
        let text = format!(
            "{HEAD}filters: [{{name: f, module: {name}}}]
x: 1
"
        )
        .replacen(
            "listeners: [{name: in, address: 127.0.0.1:8080}]",
            &format!("listeners: [{{name: in, address: 127.0.0.1:8080, tls: {{certificate_chain: {name}, private_key: {name}, client_ca: {name}}}}}]"),
            1,
        );
        let problems = parse(folder.path(), &text).unwrap_err();
        for at in [
            "p.yaml:1: listeners[0].tls.certificate_chain",
            "p.yaml:1: listeners[0].tls.private_key",
            "p.yaml:1: listeners[0].tls.client_ca",
            "p.yaml:4: filters[0].module",
        ] {
            let found = problems.lines().any(|line| line.starts_with(&expected(at)));
            assert!(found, "{name} {at}: {problems}");
        }
    }
    for (name, expected) in [
        ("large", "1: policy: DIR/large is larger than 4194304 bytes"),
        ("latin1", "3: policy: not UTF-8"),
    ] {
        let errors = Policy::load(path(name)).expect_err(name).to_string();
        let expected = expected.replace("DIR", &folder.path().display().to_string());
        assert_eq!(errors, format!("{}:{expected}", path(name).display()));
    }
}

#[test]
fn a_problem_is_one_line_and_moves_no_cursor() {
    for (text, expected) in [
        (
            "\"a\\n/etc/p.yaml:1: x: forged\": 1\n",
            "p.yaml:4: a\\n/etc/p.yaml:1: x: forged: unknown key, ",
        ),
        (
            "access_log: off\nadmin: {address: \"\\e[2J\u{202e}\"}\n",
            "p.yaml:5: admin.address: `\\u{1b}[2J\\u{202e}` is not an address",
        ),
    ] {
        let problems = parse(Path::new("/"), &format!("{HEAD}{text}")).expect_err(text);
        assert!(problems.starts_with(expected), "{problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
    let text = format!("{HEAD}admin: {{address: {}}}\n", "x".repeat(100_000));
    let problems = parse(Path::new("/"), &text).unwrap_err();
    assert!(
        problems.len() < 5_000 && problems.ends_with('…'),
        "{problems}"
    );
}
