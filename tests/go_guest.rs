//! A guest written in Go, as `go build -buildmode=c-shared` for wasip1 makes it, in Portcullis and in Envoy.

use anyhow::{Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::golang;
use portcullis_tests::http1::Request;
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::json;

use crate::places::{ANY_PORT, in_both};

#[test]
fn answers_in_both_places() -> Result<()> {
    if let Some(why) = golang::left_out() {
        report::not_run("a Go guest in Portcullis and in Envoy", why);
        return Ok(());
    }
    let upstream = Upstream::start()?;
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "go", "module": golang::guest()?, "configuration": {"greeting": "salve"}}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    in_both("a Go guest", &policy, "plain", |address| {
        let mut connection = Route::plain(address).open()?;
        // Enough for Go's collector to run some times.
        for round in 0..200 {
            let name = format!("marcus-{round}");
            let answer = connection.exchange(&Request::get("/").header("x-name", &*name))?;
            ensure!(
                answer.status == 200,
                "got {} {}",
                answer.status,
                answer.text()
            );
            let greeting = answer.header("x-greeting");
            ensure!(
                greeting == Some(format!("salve {name}")),
                "greeted with {greeting:?}"
            );
        }
        let answer = connection.exchange(&Request::get("/").header("x-refuse", "1"))?;
        ensure!(
            answer.status == 403 && answer.text() == "refused by Go",
            "got {} {}",
            answer.status,
            answer.text()
        );
        Ok(())
    })
}
