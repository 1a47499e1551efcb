//! The order of a plugin's life.

use std::rc::Rc;

use portcullis_runtime::Progress;

use crate::bed::{LIFECYCLE, Memory, answer, guest, start, stream};

#[test]
fn the_lifecycle_has_envoy_s_order() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest("", LIFECYCLE), &embedder);
    assert_eq!(
        embedder.log.take(),
        ["cre", "1create", "1vm_start", "1configure"]
    );
    for id in 2..4 {
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Continue);
        answer(&mut stream, &[(":status", "200")]);
        assert_eq!(stream.response_headers(true), Progress::Continue);
        stream.finish();
        let expected = ["create", "request", "response", "log", "done", "delete"]
            .map(|callback| format!("{id}{callback}"));
        assert_eq!(embedder.log.take(), expected);
    }
    drop(stream(&[&plugin], &[]));
    assert_eq!(
        embedder.log.take(),
        ["4create", "4log", "4done", "4delete"],
        "a filter that was never entered logs, as in Envoy"
    );
    plugin.shut_down();
    assert_eq!(embedder.log.take(), ["1done", "1delete"]);
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Respond, "ended");
}
