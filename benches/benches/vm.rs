//! What a VM costs before it serves: compiling a module, loading it from the cache, starting and configuring a plugin.

use criterion::Criterion;
use portcullis_benches::bed::Bed;
use portcullis_runtime::{ModuleCache, NoCache};
use std::cell::RefCell;
use std::collections::HashMap;

/// A cache in memory: what is measured is the runtime's part, not the disk's.
#[derive(Default)]
struct MemoryCache(RefCell<HashMap<String, Vec<u8>>>);

impl ModuleCache for MemoryCache {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }

    fn write(&self, key: &str, compiled: &[u8]) {
        self.0.borrow_mut().insert(key.to_owned(), compiled.to_vec());
    }
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let mut group = criterion.benchmark_group("vm");
    group.sample_size(10);
    for builtin in portcullis_plugins::all() {
        group.bench_function(format!("compile {}", builtin.name), |bencher| bencher.iter(|| bed.load(builtin.module, &NoCache).is_ok()));
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
    group.finish();
    criterion.final_summary();
    Ok(())
}
