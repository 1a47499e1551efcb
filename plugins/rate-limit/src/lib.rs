//! Refuses requests above a rate: 100 a minute for each user by default, counted exactly over all workers.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `limits` | `[{name: peruser, requests: 100, per: 60s}]` | 1 to 4 limits, all for the same key; a request must pass all of them |
//! | `limits[].name` | | what clients see it called: 1 to 32 letters, digits, `-`, `_`, `.` |
//! | `limits[].requests` | | requests a window, 1 to 1,000,000 |
//! | `limits[].per` | | the window in whole `s`, `m`, `h` or `d`, from `1s` to `31d` |
//! | `limits[].burst` | `requests` | requests that may come at once after a rest, 1 to `requests` |
//! | `key` | `{property: jwt.sub}` | whom to count for: `{property: NAME}`, `{header: NAME}`, `address`, or a list of up to 4, of which the first that is there and not empty counts |
//! | `key_missing` | `address` | what becomes of a request where none is there: `address` counts it for the client's address, `refuse` refuses it |
//! | `ipv6_prefix` | 64 | leading bits of an IPv6 address that make one client, 32 to 128; an IPv4 address counts whole, mapped into IPv6 or not |
//! | `cost` | 1 | requests that one request counts for, at most the smallest burst |
//! | `scope` | | tells this instance's counters from those of an equal one |
//! | `max_keys` | 65,536 | keys with debt that there is room for, 32 to 524,288; 32 bytes of shared data each (and 16 more for each limit beyond the first) |
//! | `fields` | `always` | where `RateLimit` and `RateLimit-Policy` are sent: `always`, `on_refusal`, `never` |
//!
//! # A request passes if
//!
//! 1. it has a key, or `key_missing` is `address` and the proxy knows the client's address;
//! 2. the header that the key is read from comes once;
//! 3. under every limit the key's debt, with this request, stays within the burst. The debt of a request is paid off
//!    after `per / requests` (GCRA). A request that is refused adds no debt to any limit;
//! 4. there is room for the key: it has debt already, or a slot of its shard is free. Slots are free once their debt
//!    is paid off; one with debt is never taken away, since that would hand its owner a fresh burst.
//!
//! On answers to requests that pass: `RateLimit-Policy: "peruser";q=100;w=60` and `RateLimit: "peruser";r=99;t=1`,
//! with `r` the requests that would pass now and `t` the seconds until there is one more
//! (draft-ietf-httpapi-ratelimit-headers-10). They are added to what the upstream or another instance sends: both are
//! lists.
//!
//! # A refusal
//!
//! | status | reason | when |
//! |---|---|---|
//! | 429 | `quota_exceeded` | (3); type `https://iana.org/assignments/http-problem-types#quota-exceeded` with `violated-policies` |
//! | 429 | `table_full` | (4) |
//! | 503 | `contention` | 32 compare-and-swap rounds in a row were lost to other workers: nothing could be counted, and what is not counted does not pass |
//! | 403 | `key_missing` | (1) |
//! | 400 | `key_ambiguous` | (2): a later reader might take another value than this control |
//!
//! The 429s and the 503 carry `Retry-After`: whole seconds, rounded up, at least 1; the request would then pass, or a
//! slot be free. Where shared data fails, or the client's address is no IP address, the request is refused with 500.
//!
//! # Caveats
//!
//! - A burst comes on top of the rate: any window holds at most `requests + burst` (199 of the default), and many
//!   windows `requests` each. For a hard ceiling of 100 in every minute write `requests: 50`.
//! - A user is what jwt-auth verified and left as property `jwt.sub`, so this control stands behind it. An instance
//!   with `key: address` may stand before it, against floods of bad tokens. A header is whatever a client sends,
//!   unless a trusted proxy in front sets it.
//! - Counters are shared by the instances of one `vm_id` that agree in `scope`, `limits`, `key`, `key_missing`,
//!   `ipv6_prefix` and `max_keys`. They need not agree in `cost`: so a dear route draws more from the same quota.
//!   They survive a reload that leaves those alone, and not a restart. A changed limit starts counting anew; the old
//!   counters stay in the host's memory until the `vm_id` is gone, since the ABI cannot delete.
//! - Keys are hashed with a random seed that the workers agree on; two of 65,536 clients share a counter with a
//!   probability of 6·10⁻¹⁴.
//! - Time is the host's clock. Set back, it costs a client one window at most; set forward, it forgives what would
//!   have been paid off by then.
//! - While the table is full, new clients are refused: `max_keys` should exceed the clients of one window. Who owns
//!   many networks can fill it; a limit on addresses before the one on users keeps such a flood out of the users'
//!   table.
//!
//! # Examples
//!
//! With `limits: [{name: perminute, requests: 2, per: 60s}]` and `key: address`, the second request passes and the
//! third does not:
//!
//! ```text
//! GET / HTTP/1.1             HTTP/1.1 200 OK
//! host: example.test         ratelimit-policy: "perminute";q=2;w=60
//!                            ratelimit: "perminute";r=0;t=30
//!
//! GET / HTTP/1.1             HTTP/1.1 429 Too Many Requests
//! host: example.test         content-type: application/problem+json
//!                            retry-after: 30
//!                            ratelimit-policy: "perminute";q=2;w=60
//!                            ratelimit: "perminute";r=0;t=30
//!
//!                            {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded", …,
//!                             "violated-policies":["perminute"]}
//! ```

mod config;
mod fields;
mod gcra;
mod key;
mod limits;
mod seed;
mod siphash;
mod table;
#[cfg(test)]
mod testing;

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_sdk::{
    Callbacks, ConfigError, Control, Decision, Error, LocalResponse, Metadata, PluginContext,
    Request, Response,
};

pub use config::{Config, Fields, KeyMissing, KeyOrder, KeySource, LimitConfig};

use crate::key::{Found, Key};
use crate::siphash::SipKey;
use crate::table::{Outcome, Table};

/// The control; see the crate's documentation for its contract.
pub struct RateLimit {
    key: Key,
    table: Table,
    cost: u64,
    fields: Fields,
    /// The value of `RateLimit-Policy`.
    policy: String,
    /// Unknown until the first request; see `seed.rs`.
    seed: Option<SipKey>,
}

/// What the response phase needs to know of an exchange.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The value of `RateLimit`, where the request passed and the fields are wanted.
    standing: Option<String>,
}

impl Control for RateLimit {
    const METADATA: Metadata = Metadata::new(
        "rate-limit",
        env!("CARGO_PKG_VERSION"),
        Callbacks::REQUEST_HEADERS.and(Callbacks::RESPONSE_HEADERS),
    );

    type Config = Config;
    type State = Exchange;

    fn configure(config: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
        let checked = config.check()?;
        Ok(Self {
            policy: fields::policy(&checked.limits),
            table: Table::new(checked.prefix, checked.limits, checked.shards),
            key: checked.key,
            cost: checked.cost,
            fields: checked.fields,
            seed: None,
        })
    }

    fn on_request_headers(
        &mut self,
        exchange: &mut Exchange,
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        let key = match self.key.find(request)? {
            Found::Key(key) => key,
            Found::Missing => {
                return refuse(LocalResponse::refuse(403, "key_missing", "Forbidden"));
            }
            Found::Ambiguous => {
                return refuse(LocalResponse::refuse(400, "key_ambiguous", "Bad Request"));
            }
        };

        let mut shared = request.shared();
        let seed = match self.seed {
            Some(seed) => seed,
            None => *self
                .seed
                .insert(seed::agreed(&mut shared, |bytes| request.random(bytes))?),
        };
        let now = nanoseconds(request.now())?;
        let verdict = self
            .table
            .count(&mut shared, seed.hash(&key), self.cost, now)?;

        let standing = || fields::standing(self.table.limits(), &verdict.tats, now);
        match verdict.outcome {
            Outcome::Passed => {
                exchange.standing = (self.fields == Fields::Always).then(standing);
                Ok(Decision::Continue)
            }
            Outcome::Over { wait, violated } => {
                let names: Vec<&str> = self
                    .table
                    .limits()
                    .iter()
                    .zip(violated)
                    .filter(|(_, violated)| *violated)
                    .map(|(limit, _)| limit.name.as_str())
                    .collect();
                let response = LocalResponse::refuse(
                    429,
                    "quota_exceeded",
                    "Request cannot be satisfied as assigned quota has been exceeded",
                )
                .problem_type("https://iana.org/assignments/http-problem-types#quota-exceeded")
                .member("violated-policies", names);
                let response = self.with_policy(retry_after(response, wait));
                refuse(if self.fields == Fields::Never {
                    response
                } else {
                    response.header("ratelimit", standing())
                })
            }
            Outcome::Full { wait } => refuse(self.with_policy(retry_after(
                LocalResponse::refuse(429, "table_full", "Too Many Requests"),
                wait,
            ))),
            Outcome::Contended => refuse(self.with_policy(retry_after(
                LocalResponse::refuse(503, "contention", "Service Unavailable"),
                0,
            ))),
        }
    }

    fn on_response_headers(
        &mut self,
        exchange: &mut Exchange,
        response: &mut Response<'_>,
    ) -> Result<Decision, Error> {
        if let Some(standing) = exchange.standing.take() {
            response.add_header("ratelimit-policy", &self.policy)?;
            response.add_header("ratelimit", standing)?;
        }
        Ok(Decision::Continue)
    }
}

impl RateLimit {
    fn with_policy(&self, response: LocalResponse) -> LocalResponse {
        match self.fields {
            Fields::Never => response,
            Fields::Always | Fields::OnRefusal => {
                response.header("ratelimit-policy", self.policy.as_str())
            }
        }
    }
}

fn retry_after(response: LocalResponse, wait: u64) -> LocalResponse {
    response.header("retry-after", fields::seconds(wait).to_string())
}

fn refuse(response: LocalResponse) -> Result<Decision, Error> {
    Ok(Decision::Respond(response))
}

/// Nanoseconds since the epoch.
fn nanoseconds(now: SystemTime) -> Result<u64, Error> {
    now.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .ok_or_else(|| Error::new("the host's clock stands before 1970 or after 2554"))
}

#[cfg(feature = "module")]
portcullis_sdk::export!(RateLimit);

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use portcullis_sdk::serde_json::{Value, from_slice, from_value, json};
    use portcullis_sdk::testing::{Harness, Outcome, check, no_make};

    use super::RateLimit;

    #[test]
    fn cases() {
        check::<RateLimit>("cases.yaml");
    }

    fn request(harness: &mut Harness<RateLimit>, user: u32) -> Outcome {
        let step = json!({"properties": {"jwt.sub": user.to_string()}});
        harness
            .exchange(&from_value(step).unwrap(), &no_make)
            .unwrap()
    }

    fn header<'a>(outcome: &'a Outcome, name: &str) -> Option<&'a [u8]> {
        outcome
            .headers
            .iter()
            .find(|(known, _)| known == name.as_bytes())
            .map(|(_, value)| value.as_slice())
    }

    /// A table of one shard with 64 slots: new users are refused, those with debt go on, and time makes room.
    #[test]
    fn a_full_table_says_when_there_is_room() {
        let mut harness = Harness::<RateLimit>::new(SystemTime::now());
        harness
            .configure(
                r#"{"max_keys": 32, "limits": [{"name": "a", "requests": 2, "per": "60s"}]}"#,
            )
            .unwrap();
        for user in 0..64 {
            assert_eq!(request(&mut harness, user).status, 200, "user {user}");
        }
        let refused = request(&mut harness, 64);
        assert_eq!(refused.status, 429);
        assert_eq!(header(&refused, "retry-after"), Some(&b"30"[..]));
        assert_eq!(
            header(&refused, "ratelimit-policy"),
            Some(&b"\"a\";q=2;w=60"[..])
        );
        assert_eq!(header(&refused, "ratelimit"), None);
        let problem: Value = from_slice(&refused.body).unwrap();
        assert_eq!(problem["type"], "about:blank");
        assert_eq!(
            harness.metric("portcullis.rate-limit.refused.table_full"),
            Some(1)
        );
        assert_eq!(request(&mut harness, 63).status, 200);

        harness.advance(Duration::from_secs(30), &no_make).unwrap();
        assert_eq!(request(&mut harness, 64).status, 200);
    }

    /// Counters belong to the shared data and not to the plugin: a reload that leaves the limits alone keeps them.
    #[test]
    fn a_reload_keeps_the_counters_of_equal_limits() {
        let limits = r#""limits": [{"name": "a", "requests": 1, "per": "60s"}]"#;
        let rows = [
            (format!("{{{limits}}}"), 200),
            (format!("{{{limits}}}"), 429),
            (format!(r#"{{{limits}, "fields": "never"}}"#), 429),
            (format!(r#"{{{limits}, "scope": "other"}}"#), 200),
            (
                r#"{"limits": [{"name": "a", "requests": 2, "per": "60s"}]}"#.to_owned(),
                200,
            ),
            (format!("{{{limits}}}"), 429),
        ];
        let mut harness = Harness::<RateLimit>::new(SystemTime::now());
        for (configuration, status) in rows {
            harness.configure(&configuration).unwrap();
            assert_eq!(request(&mut harness, 1).status, status, "{configuration}");
        }
    }
}
