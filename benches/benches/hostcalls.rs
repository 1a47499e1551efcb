//! Hostcalls one by one: a guest makes the same call a thousand times in one request; what is shown is one call, answer and
//! all that it writes into the guest included.

use anyhow::{Context, Result};
use criterion::Criterion;
use portcullis_benches::bed::{Bed, Traffic, pass};
use portcullis_benches::guests::{CALLS, CALLS_A_REQUEST};
use portcullis_runtime::{Chain, NoCache};
use std::time::Instant;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let traffic = Traffic::new(&[]);
    let mut group = criterion.benchmark_group("hostcall");
    for row in CALLS {
        let wasm = wat::parse_str(row.guest()).with_context(|| row.name)?;
        let plugin = bed.start(row.name, &bed.load(&wasm, &NoCache)?, "{}")?;
        let chain = Chain::new(vec![plugin]);
        assert_eq!(
            pass(&chain, traffic.exchange()),
            200,
            "{} breaks its VM",
            row.name
        );
        group.bench_function(row.name, |bencher| {
            bencher.iter_custom(|calls| {
                let requests = calls.div_ceil(u64::from(CALLS_A_REQUEST));
                let exchanges: Vec<_> = (0..requests).map(|_| traffic.exchange()).collect();
                let start = Instant::now();
                let mut passed = 0;
                for exchange in exchanges {
                    passed += u64::from(pass(&chain, exchange) == 200);
                }
                assert_eq!(passed, requests, "{} breaks its VM", row.name);
                start
                    .elapsed()
                    .mul_f64(calls as f64 / (requests * u64::from(CALLS_A_REQUEST)) as f64)
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
