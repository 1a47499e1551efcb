//! Policy files: any text is read or refused, and every refusal names the file, a line that the text has, and a reason.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use portcullis::policy::Policy;
use tempfile::TempDir;

fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| tempfile::tempdir().expect("a temporary folder"))
        .path()
}

fuzz_target!(|text: &str| {
    // Paths lead only into an empty folder: nothing of the machine decides the answer, and no pipe or device is opened.
    if text.contains('/') || text.contains("..") {
        return;
    }
    let Err(errors) = Policy::parse(Path::new("p.yaml"), folder(), text) else {
        return;
    };
    let told = errors.to_string();
    assert!(!told.is_empty(), "refused without a reason");
    // YAML 1.2 section 5.4: a lone carriage return ends a line as well.
    let lines = text.matches(['\n', '\r']).count() + 1;
    for problem in errors.0.iter() {
        let line = problem.place.line as usize;
        assert!(
            (1..=lines).contains(&line),
            "line {line} of {lines}: {told}"
        );
        assert!(!problem.reason.is_empty(), "{told}");
    }
});
