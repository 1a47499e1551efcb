//! What is measured against numbers: chains of more and more filters, more headers, more routes, more keys of rate-limit.

use crate::bed::{Bed, Traffic};
use crate::embedder::BenchEmbedder;
use crate::life::{batches_us, life_us};
use anyhow::{Context, Result, ensure};
use portcullis::DiskCache;
use portcullis::policy::{Policy, Route};
use portcullis_runtime::{Chain, Isolation, Plugin, PluginId};
use serde_json::json;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// One visit: measures for about so long, and gives the figure in the subject's unit.
pub type Visit = Box<dyn FnMut(Duration) -> Result<f64>>;

/// A cost at one number of something.
pub struct Subject {
    /// Which of [`SERIES`], by key.
    pub series: &'static str,
    /// How many.
    pub n: u32,
    /// Measures, in µs.
    pub visit: Visit,
}

/// The series: key, what costs, what there is more and more of, at which numbers.
pub const SERIES: [(&str, &str, &str, &[u32]); 6] = [
    (
        "filters",
        "A request's life in a chain of header controls that all pass (security-headers, HSTS alone, sent by the upstream already), less what it takes without a filter",
        "filter",
        &[1, 2, 4, 8, 14],
    ),
    (
        "filters-in-one-vm",
        "The same chain, all of it in one VM (`isolation: shared`): what is left where no filter has a memory of its own",
        "filter",
        &[1, 2, 4, 8, 14],
    ),
    (
        "headers",
        "A request's life in security-headers (profile `api`) by headers in the request and in the response each, less what it takes without a filter",
        "header",
        &[5, 20, 100],
    ),
    (
        "hosts",
        "Finding the route of a request, each route for a host of its own",
        "route",
        &[1, 10, 100, 1000, 10_000],
    ),
    (
        "prefixes",
        "Finding the route of a request, each route for a prefix of its own under one host",
        "route",
        &[1, 10, 100, 1000, 10_000],
    ),
    (
        "keys",
        "A request's life in rate-limit by keys with debt, less what it takes without a filter",
        "key",
        &[1, 256, 4096, 65_536],
    ),
];

/// Look-ups timed together.
const LOOK_UPS: u32 = 512;
/// Requests of other hosts and paths that look-ups go through in turn.
const ASKED: u32 = 512;

/// All subjects of a series at the numbers up to `largest`.
///
/// # Errors
/// When a plugin does not start, or a policy is refused.
pub fn subjects(bed: &Bed, largest: u32) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for (series, _, _, numbers) in SERIES {
        for n in numbers.iter().copied().filter(|n| *n <= largest) {
            let visit = match series {
                "filters" => filters(bed, n, Isolation::Plugin)?,
                "filters-in-one-vm" => filters(bed, n, Isolation::Shared)?,
                "headers" => headers(bed, n)?,
                "keys" => keys(bed, n)?,
                by => routes(by == "hosts", n)?,
            };
            subjects.push(Subject { series, n, visit });
        }
    }
    Ok(subjects)
}

/// The upstream's answer has the header already, so that all filters do the same: read it, and find it strict enough. If one had to add it, the
/// first would be cheaper than those that then find it.
fn filters(bed: &Bed, n: u32, isolation: Isolation) -> Result<Visit> {
    let module = bed.builtin("security-headers")?;
    let embedder = Rc::new(BenchEmbedder::default());
    let configuration = r#"{"profile":"hsts"}"#;
    let first = bed.start_as(isolation, "hsts", &module, configuration, &embedder)?;
    let mut plugins = vec![Rc::clone(&first)];
    for id in 1..n {
        // In the same VM, where the isolation lets them.
        let spec = Arc::new(first.spec().clone());
        plugins.push(Plugin::start_beside(&first, PluginId(id), spec)?);
    }
    let chain = Chain::new(plugins);
    let hsts = "max-age=63072000; includeSubDomains";
    let traffic = Traffic::new(&[]).answered_with("strict-transport-security", hsts);
    Ok(Box::new(move |lasting| {
        life_us(&chain, lasting, || traffic.exchange())
    }))
}

fn headers(bed: &Bed, n: u32) -> Result<Visit> {
    let chain = bed.chain("security-headers", r#"{"profile":"api"}"#)?;
    let traffic = Traffic::new(&[]).of_headers(usize::try_from(n)?);
    Ok(Box::new(move |lasting| {
        life_us(&chain, lasting, || traffic.exchange())
    }))
}

/// A user of the policy's own router: routes as an operator writes them, and requests that hit each as often as the others.
fn routes(by_host: bool, n: u32) -> Result<Visit> {
    let named = |number: u32| {
        if by_host {
            (
                format!("tenant-{number}.api.example.com"),
                "/orders".to_owned(),
            )
        } else {
            (
                "api.example.com".to_owned(),
                format!("/v1/service-{number}"),
            )
        }
    };
    let routes: Vec<_> = (0..n)
        .map(|number| {
            let (host, prefix) = named(number);
            json!({"name": format!("r{number}"), "host": host, "prefix": prefix, "cluster": "upstream"})
        })
        .collect();
    let policy = json!({
        "listeners": [{"name": "http", "address": "127.0.0.1:0"}],
        "clusters": [{"name": "upstream", "endpoints": ["127.0.0.1:1"]}],
        "routes": routes,
    });
    let policy = Policy::parse(Path::new("routes"), Path::new("/"), &policy.to_string());
    let table = policy.map_err(|errors| anyhow::anyhow!("{errors}"))?.table;
    let asked: Vec<(String, String, String)> = (0..ASKED)
        .map(|number| {
            // As many different ones as there are, in no order.
            let number = number.wrapping_mul(2_654_435_761) % n;
            let (host, prefix) = named(number);
            (host, format!("{prefix}/items/7"), format!("r{number}"))
        })
        .collect();
    for (host, path, name) in &asked {
        let found: Option<&Arc<Route>> = table.find(host, path);
        let found = found.map(|route| route.name.as_str());
        ensure!(found == Some(name), "{host}{path} goes to {found:?}");
    }
    Ok(Box::new(move |lasting| {
        let mut turn = asked.iter().cycle();
        batches_us(
            lasting,
            LOOK_UPS,
            || turn.next(),
            |asked| {
                if let Some((host, path, _)) = asked {
                    std::hint::black_box(table.find(host, path));
                }
            },
        )
    }))
}

/// A debt that takes 2.7 s to be paid off for each request: longer than a visit, before which every key is asked once.
const LIMIT: &str =
    r#"{"key":"address","limits":[{"name":"scaling","requests":1000000,"per":"31d"}]}"#;

fn keys(bed: &Bed, n: u32) -> Result<Visit> {
    let wasm = portcullis_plugins::builtin("rate-limit").context("no builtin rate-limit")?;
    let module = bed.load(wasm.module, &DiskCache::of_user())?;
    // Its own name, and so counters of its own.
    let plugin = bed.start(&format!("rate-limit-{n}"), &module, LIMIT)?;
    let chain = Chain::new(vec![plugin]);
    let traffic = Traffic::new(&[]);
    let mut number = 0_u32;
    let mut next = move || {
        number = number.wrapping_add(1);
        // An odd factor, and n a power of two: each key once in n requests, in no order.
        let key = number.wrapping_mul(2_654_435_761) % n;
        traffic.exchange_from(Ipv4Addr::from(0x0a00_0000 | key).into())
    };
    Ok(Box::new(move |lasting| {
        for _ in 0..n {
            let status = crate::bed::pass(&chain, next());
            ensure!(status == 200, "one of {n} keys was answered with {status}");
        }
        life_us(&chain, lasting, &mut next)
    }))
}
