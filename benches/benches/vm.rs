//! What a VM costs before it serves: compiling a module, loading it from the cache, starting and configuring a plugin.

use criterion::Criterion;
use portcullis_benches::bed::{Bed, Traffic, WARM, pass};
use portcullis_benches::embedder::BenchEmbedder;
use portcullis_benches::guests::TRAPPING;
use portcullis_benches::issuer::Issuer;
use portcullis_runtime::{Chain, Isolation, ModuleCache, NoCache};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A cache in memory: what is measured is the runtime's part, not the disk's.
#[derive(Default)]
struct MemoryCache(RefCell<HashMap<String, Vec<u8>>>);

impl ModuleCache for MemoryCache {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }

    fn write(&self, key: &str, compiled: &[u8]) {
        self.0
            .borrow_mut()
            .insert(key.to_owned(), compiled.to_vec());
    }
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let mut group = criterion.benchmark_group("vm");
    group.sample_size(10);
    for builtin in portcullis_plugins::all() {
        group.bench_function(format!("compile {}", builtin.name), |bencher| {
            bencher.iter(|| bed.load(builtin.module, &NoCache).is_ok())
        });
        let cache = MemoryCache::default();
        bed.load(builtin.module, &cache)?;
        group.bench_function(format!("load {} from the cache", builtin.name), |bencher| {
            bencher.iter(|| bed.load(builtin.module, &cache).is_ok());
        });
    }
    group.sample_size(50);
    for control in ["security-headers", "tls-policy", "rate-limit"] {
        let module = portcullis_plugins::builtin(control).map_or(&[][..], |builtin| builtin.module);
        let module = bed.load(module, &NoCache)?;
        group.bench_function(format!("start and configure {control}"), |bencher| {
            bencher.iter(|| bed.start(control, &module, "{}").is_ok());
        });
    }
    let trapping = bed.load(&wat::parse_str(TRAPPING)?, &NoCache)?;
    let chain = Chain::new(vec![bed.start("trapping", &trapping, "")?]);
    let (bad, good) = (
        Traffic::new(&[("x-crime", "trap".to_owned())]),
        Traffic::new(&[]),
    );
    assert_eq!(
        (pass(&chain, bad.exchange()), pass(&chain, good.exchange())),
        (503, 200)
    );
    group.bench_function("a trap, and the next request on a fresh VM", |bencher| {
        bencher.iter_batched(
            || (bad.exchange(), good.exchange()),
            |(bad, good)| (pass(&chain, bad), pass(&chain, good)),
            WARM,
        );
    });
    let issuer = Issuer::new()?;
    let traffic = Traffic::new(&[("authorization", format!("Bearer {}", issuer.token()?))]);
    let mut life = |name: &str, chain: &Chain| {
        assert_eq!(pass(chain, traffic.exchange()), 200, "{name}");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || traffic.exchange(),
                |exchange| pass(chain, exchange),
                WARM,
            );
        });
    };
    life("a request, no filter", &Chain::new(Vec::new()));
    let jwt_auth = issuer.jwt_auth_configuration().to_string();
    // With a VM of its own, a request finds no token in jwt-auth's cache.
    for (control, configuration) in [
        ("tls-policy", "{}"),
        ("security-headers", r#"{"profile":"hsts"}"#),
        (
            "rate-limit",
            r#"{"limits":[{"name":"bench","requests":1000000,"per":"1s"}]}"#,
        ),
        ("jwt-auth", &jwt_auth),
    ] {
        let wasm = portcullis_plugins::builtin(control).map_or(&[][..], |builtin| builtin.module);
        let module = bed.load_for_snapshots(wasm, &NoCache)?;
        for (name, isolation, from_snapshot) in [
            ("shared", Isolation::Shared, false),
            ("plugin", Isolation::Plugin, false),
            ("request, configured each time", Isolation::Request, false),
            ("request, from a snapshot", Isolation::Request, true),
        ] {
            let embedder = Rc::new(BenchEmbedder::default());
            let plugin = bed.start_as(isolation, control, &module, configuration, &embedder)?;
            if from_snapshot {
                plugin.tend();
                assert_eq!(embedder.make_snapshots(), 1);
                plugin.tend();
                assert_eq!(plugin.stats().snapshots(), 1);
            }
            let name = format!("a request, {control}, isolation {name}");
            life(&name, &Chain::new(vec![plugin]));
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
