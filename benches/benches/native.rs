//! The controls without Wasm and without a proxy: the cases that their authors marked `benchmark: true`, in the SDK's native
//! harness. `harness alone` is a control that does nothing; what a case costs above it is the control's own.

use anyhow::{Context, Result, anyhow, ensure};
use criterion::{BatchSize, BenchmarkGroup, Criterion, measurement::WallTime};
use portcullis_sdk::prelude::*;
use portcullis_sdk::testing::{Cases, Harness, Step, Value};
use portcullis_tests::build_folder::repository;
use std::time::SystemTime;

/// Passes everything.
struct Nothing;

impl Control for Nothing {
    const METADATA: Metadata = Metadata::new(
        "nothing",
        "1.0.0",
        Callbacks::REQUEST_HEADERS.and(Callbacks::RESPONSE_HEADERS),
    );
    type Config = serde_json::Value;
    type State = ();

    fn configure(_: Self::Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

/// One exchange, values made beforehand: a token is not to be signed while the clock runs.
fn made(step: &Step, now: SystemTime) -> Result<Step> {
    let mut step = step.clone();
    for (_, value) in step
        .request
        .headers
        .iter_mut()
        .chain(&mut step.upstream.headers)
    {
        let bytes = value
            .bytes(now, &jwt_auth::testing::make)
            .map_err(|error| anyhow!(error))?;
        *value = Value::Text(String::from_utf8(bytes)?);
    }
    Ok(step)
}

fn cases<C: Control>(group: &mut BenchmarkGroup<'_, WallTime>) -> Result<()> {
    let name = C::METADATA.name;
    let file = repository().join("plugins").join(name).join("cases.yaml");
    for case in Cases::read(&file)?
        .cases
        .iter()
        .filter(|case| case.benchmark)
    {
        let now = SystemTime::now();
        let Some(step) = case.steps.first() else {
            continue;
        };
        let step = made(step, now)?;
        let configuration = case.configuration.to_string();
        group.bench_function(format!("{name}: {}", case.name), |bencher| {
            bencher.iter_batched_ref(
                || {
                    let mut harness = Harness::<C>::new(now);
                    assert_eq!(harness.configure(&configuration), Ok(()), "{}", case.name);
                    // What is measured is not the first request of a VM.
                    assert!(harness.exchange(&step, &jwt_auth::testing::make).is_ok());
                    harness
                },
                |harness| harness.exchange(&step, &jwt_auth::testing::make),
                BatchSize::SmallInput,
            );
        });
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("life natively");
    let mut harness = Harness::<Nothing>::new(SystemTime::now());
    let configured = harness.configure("{}");
    ensure!(configured.is_ok(), "{configured:?}");
    let alone = Cases::parse("{control: nothing, cases: [{name: passes, expect: {status: 200}}]}")?;
    let step = alone
        .cases
        .first()
        .and_then(|case| case.steps.first())
        .context("no step")?;
    group.bench_function("harness alone", |bencher| {
        bencher.iter(|| harness.exchange(step, &jwt_auth::testing::make));
    });
    cases::<security_headers::SecurityHeaders>(&mut group)?;
    cases::<tls_policy::TlsPolicy>(&mut group)?;
    cases::<jwt_auth::JwtAuth>(&mut group)?;
    cases::<rate_limit::RateLimit>(&mut group)?;
    group.finish();
    criterion.final_summary();
    Ok(())
}
