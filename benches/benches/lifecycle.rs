//! A request's whole plugin life, control by control: stream created, request headers, response headers, log, done, delete,
//! with the proxy's own header maps; and each of its phases by itself. `no filter` is the cost of the maps and the bench itself.

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use portcullis::fields::HttpFields;
use portcullis_benches::bed::{Bed, Traffic, WARM, pass};
use portcullis_benches::issuer::Issuer;
use portcullis_runtime::{Chain, Exchange, HttpStream, NoCache, StreamToken};

/// Four times what the control keeps, so that none is in its cache when its turn comes again.
const TOKENS: usize = 1024;

/// What a proxy reads of a connection at once.
const CHUNK: usize = 16 << 10;

/// A guest that has each chunk of a request's body copied into its memory, and lets it pass.
const BODY_READER: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $bytes (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
    (drop (call $bytes (i32.const 0) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
    (i32.const 0)))"#;

/// A request with `body` on its way through a chain, chunk by chunk. Gives the bytes that came out.
fn pass_with_body(chain: &Chain, (exchange, _): (Exchange, HttpFields), body: &Bytes) -> usize {
    let mut stream = HttpStream::new(chain, exchange, StreamToken(1));
    stream.request_headers(false);
    let mut passed = 0;
    for start in (0..body.len()).step_by(CHUNK) {
        let end = body.len().min(start + CHUNK);
        stream.request_body(body.slice(start..end), end == body.len());
        passed += stream.take_request_body().len();
    }
    stream.finish();
    passed
}

/// The phases of a request's life, each timed by itself: what went before is made ready, what comes after is left out.
fn phases(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, chain: &Chain, traffic: &Traffic) {
    let asked = |(exchange, response): (Exchange, HttpFields)| {
        let mut stream = HttpStream::new(chain, exchange, StreamToken(1));
        stream.request_headers(true);
        (stream, response)
    };
    let answered = |(mut stream, response): (HttpStream, HttpFields)| {
        stream.exchange_mut().response_headers = Some(Box::new(response));
        stream.response_headers(true);
        stream
    };
    // A refusal would be timed as a phase of what passes.
    assert_eq!(pass(chain, traffic.exchange()), 200, "{name} refuses");
    group.bench_function(format!("{name}, request headers"), |bencher| {
        bencher.iter_batched(|| traffic.exchange(), asked, WARM);
    });
    group.bench_function(format!("{name}, response headers"), |bencher| {
        bencher.iter_batched(|| asked(traffic.exchange()), answered, WARM);
    });
    group.bench_function(format!("{name}, end"), |bencher| {
        bencher.iter_batched(
            || answered(asked(traffic.exchange())),
            HttpStream::finish,
            WARM,
        );
    });
}

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let bed = Bed::new()?;
    let issuer = Issuer::new()?;
    let hsts_alone = r#"{"profile":"hsts"}"#;
    let limits = r#"{"limits":[{"name":"bench","requests":1000000,"per":"1s"}]}"#;
    let bearer = ("authorization", format!("Bearer {}", issuer.token()?));
    let jwt_auth = issuer.jwt_auth_configuration().to_string();

    let mut group = criterion.benchmark_group("life in the VM");
    let mut answered = |name: &str, chain: &Chain, traffic: &Traffic, status: u16| {
        // A refusal costs something else than an exchange that passes.
        assert_eq!(
            pass(chain, traffic.exchange()),
            status,
            "{name} answers the benchmark's request otherwise"
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
    let no_token = bed.chain("jwt-auth", &jwt_auth)?;
    answered("jwt-auth, no token (401)", &no_token, &plain, 401);
    let spent = r#"{"limits":[{"name":"bench","requests":1,"per":"24h"}]}"#;
    let spent = bed.chain("rate-limit", spent)?;
    pass(&spent, plain.exchange());
    answered("rate-limit, quota spent (429)", &spent, &plain, 429);
    let mut life = |name: &str, chain: &Chain, traffic: &Traffic| {
        answered(name, chain, traffic, 200);
    };
    life("no filter", &Chain::new(Vec::new()), &plain);
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
    for count in [5, 20, 100] {
        life(
            &format!("no filter, {count} headers"),
            &Chain::new(Vec::new()),
            &plain.clone().of_headers(count),
        );
        life(
            &format!("security-headers, {count} headers"),
            &bed.chain("security-headers", "{}")?,
            &plain.clone().of_headers(count),
        );
        life(
            &format!("rate-limit, {count} headers"),
            &bed.chain("rate-limit", limits)?,
            &plain.clone().of_headers(count),
        );
    }
    let four = [
        ("security-headers", "{}"),
        ("tls-policy", "{}"),
        ("jwt-auth", &*jwt_auth),
        ("rate-limit", limits),
    ];
    for length in [1, 4, 8, 14] {
        let plugins = four
            .iter()
            .cycle()
            .take(length)
            .map(|(control, configuration)| bed.plugin(control, configuration))
            .collect::<anyhow::Result<Vec<_>>>()?;
        life(
            &format!("the four repeated to {length} filters"),
            &Chain::new(plugins),
            &with_token,
        );
    }
    let reader = wat::parse_str(BODY_READER)?;
    let reader = bed.start("body reader", &bed.load(&reader, &NoCache)?, "{}")?;
    let chain = Chain::new(vec![reader]);
    for (name, length) in [("1 KiB", 1 << 10), ("64 KiB", 1 << 16), ("1 MiB", 1 << 20)] {
        let body = Bytes::from(vec![b'x'; length]);
        assert_eq!(
            pass_with_body(&chain, plain.exchange(), &body),
            length,
            "the body reader keeps some of {name}"
        );
        group.bench_function(
            format!("a body of {name} read in chunks of 16 KiB"),
            |bencher| {
                bencher.iter_batched(
                    || plain.exchange(),
                    |exchange| pass_with_body(&chain, exchange, &body),
                    WARM,
                );
            },
        );
    }
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
    let mut group = criterion.benchmark_group("phase in the VM");
    phases(
        &mut group,
        "no filter",
        &Chain::new(Vec::new()),
        &with_token,
    );
    for (control, configuration) in four {
        let chain = bed.chain(control, configuration)?;
        phases(&mut group, control, &chain, &with_token);
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
