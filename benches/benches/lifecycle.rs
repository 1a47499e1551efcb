//! A request's whole plugin life, control by control: stream created, request headers, response headers, log, done, delete,
//! with the proxy's own header maps. `no filter` is the cost of the maps and the bench itself.

use criterion::Criterion;
use portcullis_benches::bed::{Bed, Traffic, WARM, pass};
use portcullis_benches::issuer::Issuer;

/// Four times what the control keeps, so that none is in its cache when its turn comes again.
const TOKENS: usize = 1024;

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let issuer = Issuer::new()?;
    let hsts_alone = r#"{"profile":"hsts"}"#;
    let limits = r#"{"limits":[{"name":"bench","requests":1000000,"per":"1s"}]}"#;
    let bearer = ("authorization", format!("Bearer {}", issuer.token()?));
    let jwt_auth = issuer.jwt_auth_configuration();

    let mut group = criterion.benchmark_group("life in the VM");
    let mut life = |name: &str, chain: &portcullis_runtime::Chain, traffic: &Traffic| {
        // A refusal costs something else: what is measured must pass.
        assert_eq!(
            pass(chain, traffic.exchange()),
            200,
            "{name} refuses the benchmark's request"
        );
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || traffic.exchange(),
                |exchange| pass(chain, exchange),
                WARM,
            );
        });
    };
    let plain = Traffic::new(&[]);
    let with_token = Traffic::new(&[bearer]);
    life(
        "no filter",
        &portcullis_runtime::Chain::new(Vec::new()),
        &plain,
    );
    life(
        "security-headers, hsts alone",
        &bed.chain("security-headers", hsts_alone)?,
        &plain,
    );
    life(
        "security-headers",
        &bed.chain("security-headers", "{}")?,
        &plain,
    );
    life("tls-policy", &bed.chain("tls-policy", "{}")?, &plain);
    life("rate-limit", &bed.chain("rate-limit", limits)?, &plain);
    life(
        "jwt-auth, cached token",
        &bed.chain("jwt-auth", &jwt_auth)?,
        &with_token,
    );
    let chain = bed.chain("jwt-auth", &jwt_auth)?;
    let uncached = issuer.tokens(TOKENS)?;
    let uncached: Vec<_> = uncached
        .into_iter()
        .map(|token| Traffic::new(&[("authorization", format!("Bearer {token}"))]))
        .collect();
    let mut turns = uncached.iter().cycle();
    group.bench_function("jwt-auth, uncached RS256 token", |bencher| {
        bencher.iter_batched(
            || turns.next().map(Traffic::exchange),
            |exchange| exchange.map(|exchange| pass(&chain, exchange)),
            WARM,
        );
    });
    group.finish();
    criterion.final_summary();
    Ok(())
}
