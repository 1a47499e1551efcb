//! A plugin on a host in memory, and its cases run on it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::any::AnyExchange;
use super::cases::{Callout, Case, Cases, Place, RequestSpec, Step, UpstreamSpec};
use super::expect::Outcome;
use super::life::{Life, connection_properties, request_fields, upstream_fields};
use super::value::{Make, no_make};
use crate::callbacks::Callbacks;
use crate::control::Control;
use crate::host::Level;
use crate::host::native::{ExchangeWorld, ForeignFunction, NativeHost};
use crate::plugin::Plugin;

/// Ticks that one `advance` may fire; a tick period of a millisecond over an hour is a mistake.
const TICKS_MAX: u32 = 10_000;

/// Runs the cases of a file that are for the native place; fails with a diff of each that does not hold.
///
/// # Panics
///
/// If the file cannot be read, names another control, or a case does not hold: it is for tests.
pub fn check<C: Control>(path: impl AsRef<Path>) {
    check_with::<C>(path, &no_make);
}

/// As [`check`], with a function that makes the values of placeholders.
///
/// # Panics
///
/// As [`check`].
#[expect(clippy::panic, reason = "it is an assertion")]
pub fn check_with<C: Control>(path: impl AsRef<Path>, make: Make<'_>) {
    let cases = Cases::read(path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        cases.control,
        C::METADATA.name,
        "the cases are another control's"
    );
    assert!(
        cases.at(Place::Native).next().is_some(),
        "no case runs natively"
    );
    let failures: Vec<String> = cases
        .at(Place::Native)
        .filter_map(|case| check_case::<C>(case, make).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} cases do not hold\n\n{}",
        failures.len(),
        cases.cases.len(),
        failures.join("\n")
    );
}

/// Runs one case; the error is a diff.
fn check_case<C: Control>(case: &Case, make: Make<'_>) -> Result<(), String> {
    let failed = |step: usize, round: u32, lines: String| {
        format!(
            "case {:?}, step {}, round {}:\n{lines}",
            case.name,
            step + 1,
            round + 1
        )
    };
    let mut harness = Harness::<C>::new(SystemTime::now());
    harness.callouts.clone_from(&case.callouts);
    harness.set_clusters();
    harness
        .configure(&case.configuration.to_string())
        .map_err(|lines| failed(0, 0, format!("configuration refused\n{lines}\n")))?;
    for (index, step) in case.steps.iter().enumerate() {
        harness
            .advance(step.advance, make)
            .map_err(|reason| failed(index, 0, reason))?;
        for round in 0..step.repeat {
            let logged = harness.log().len();
            let outcome = harness
                .exchange(step, make)
                .map_err(|reason| failed(index, round, reason))?;
            let mismatches = step.expect.check(&outcome);
            if !mismatches.is_empty() {
                let mut lines = String::new();
                for mismatch in mismatches {
                    lines.push_str(&format!("{mismatch}\n"));
                }
                for (level, line) in harness.log().iter().skip(logged) {
                    lines.push_str(&format!("  log {level:?}: {line}\n"));
                }
                return Err(failed(index, round, lines));
            }
        }
    }
    Ok(())
}

/// A control on a host in memory. The clock is handed in and moves only by [`advance`](Self::advance).
pub struct Harness<C: Control> {
    host: NativeHost,
    plugin: Plugin<C>,
    callouts: Vec<Callout>,
    next_tick_ns: Option<u64>,
    exchanges: u64,
}

impl<C: Control> Harness<C> {
    /// A fresh plugin, not yet configured, at a time.
    pub fn new(now: SystemTime) -> Self {
        let host = NativeHost::default();
        let now_ns = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        host.world()
            .now_ns
            .set(u64::try_from(now_ns).unwrap_or(u64::MAX));
        Self {
            plugin: Plugin::new(host.clone()),
            host,
            callouts: Vec::new(),
            next_tick_ns: None,
            exchanges: 0,
        }
    }

    /// Configures the plugin with JSON; the error is what it logged.
    pub fn configure(&mut self, json: &str) -> Result<(), String> {
        *self.host.world().configuration.borrow_mut() = json.as_bytes().to_vec();
        let logged = self.log().len();
        if self.plugin.configure() {
            self.arm_tick();
            return Ok(());
        }
        let log = self.log();
        let lines: Vec<&str> = log
            .iter()
            .skip(logged)
            .map(|(_, line)| line.as_str())
            .collect();
        Err(lines.join("\n"))
    }

    /// What clusters answer to the plugin's calls, in order; the last of a cluster repeats. A cluster without an
    /// answer is unknown.
    pub fn set_callouts(&mut self, callouts: Vec<Callout>) {
        self.callouts = callouts;
        self.set_clusters();
    }

    /// Gives the host a foreign function.
    pub fn set_foreign_function(&mut self, name: &str, function: ForeignFunction) {
        self.host
            .world()
            .foreign
            .borrow_mut()
            .insert(name.into(), function);
    }

    /// Lets time pass: every tick that falls due, and the answers to the calls it starts.
    pub fn advance(&mut self, by: Duration, make: Make<'_>) -> Result<(), String> {
        let world_now = self.host.world().now_ns.get();
        let end = world_now.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
        let mut ticks = 0;
        self.answer_calls(make)?;
        while let Some(due) = self.next_tick_ns.filter(|due| *due <= end) {
            ticks += 1;
            if ticks > TICKS_MAX {
                return Err(format!("more than {TICKS_MAX} ticks in one advance"));
            }
            self.host.world().now_ns.set(due);
            if C::METADATA.callbacks.contains(Callbacks::TICK) {
                self.plugin.on_tick();
            }
            self.arm_tick();
            self.answer_calls(make)?;
        }
        self.host.world().now_ns.set(end);
        Ok(())
    }

    /// Runs one exchange to its end. An error is a value that cannot be made.
    pub fn exchange(&mut self, step: &Step, make: Make<'_>) -> Result<Outcome, String> {
        self.answer_calls(make)?;
        let now = UNIX_EPOCH + Duration::from_nanos(self.host.world().now_ns.get());
        self.exchanges += 1;
        let request = request_fields(&step.request, self.exchanges, now, make)?;
        let answer = upstream_fields(&step.upstream, now, make)?;
        let mut properties = connection_properties(&step.request);
        properties.extend(
            step.properties
                .iter()
                .map(|(name, value)| (name.clone().into(), value.clone().into())),
        );
        self.host.set_exchange(Some(ExchangeWorld {
            request,
            properties,
            ..ExchangeWorld::default()
        }));
        let outcome = Life::new(&self.host, &mut self.plugin).run(step, answer);
        self.host.set_exchange(None);
        Ok(outcome)
    }

    /// Runs one exchange of any bytes to its end.
    ///
    /// # Panics
    ///
    /// If the control does: that is what it is for.
    pub fn any_exchange(&mut self, any: &AnyExchange) -> Outcome {
        // No placeholder is in it, so every value can be made.
        let _ = self.answer_calls(&no_make);
        let text = |bytes: &Option<Vec<u8>>, default: String| match bytes {
            Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            None => default,
        };
        let default = RequestSpec::default();
        let spec = RequestSpec {
            method: text(&any.method, default.method),
            path: text(&any.path, default.path),
            authority: text(&any.authority, default.authority),
            ..RequestSpec::default()
        };
        self.exchanges += 1;
        let mut request =
            request_fields(&spec, self.exchanges, UNIX_EPOCH, &no_make).unwrap_or_default();
        for (name, bytes) in [
            (":method", &any.method),
            (":path", &any.path),
            (":authority", &any.authority),
        ] {
            let field = request
                .iter_mut()
                .find(|(known, _)| known == name.as_bytes());
            if let (Some((_, value)), Some(bytes)) = (field, bytes) {
                value.clone_from(bytes);
            }
        }
        request.extend(any.headers.iter().cloned());
        let answer = UpstreamSpec {
            status: any.status.unwrap_or(200),
            ..UpstreamSpec::default()
        };
        let mut answer = upstream_fields(&answer, UNIX_EPOCH, &no_make).unwrap_or_default();
        answer.extend(any.answer_headers.iter().cloned());
        self.host.set_exchange(Some(ExchangeWorld {
            request,
            properties: connection_properties(&spec),
            ..ExchangeWorld::default()
        }));
        let life = Life::new(&self.host, &mut self.plugin);
        let outcome = life.run_bytes(&any.body, answer, any.answer_body.clone());
        self.host.set_exchange(None);
        outcome
    }

    /// All that was logged.
    pub fn log(&self) -> Vec<(Level, String)> {
        self.host.world().log.borrow().clone()
    }

    /// The value of a metric by its whole name; `None` if it was never defined.
    pub fn metric(&self, name: &str) -> Option<u64> {
        self.host.metric_value(name)
    }

    /// The request headers that the control declared as its own.
    pub fn owned_request_headers(&self) -> Vec<String> {
        let properties = self.host.world().plugin_properties.borrow();
        let declared = properties.get(b"portcullis.owned_request_headers".as_slice());
        let text = declared
            .map(|names| String::from_utf8_lossy(names).into_owned())
            .unwrap_or_default();
        text.split('\0')
            .filter(|name| !name.is_empty())
            .map(String::from)
            .collect()
    }

    fn set_clusters(&self) {
        let names = self.callouts.iter().map(|callout| callout.cluster.clone());
        *self.host.world().clusters.borrow_mut() = names.collect();
    }

    fn arm_tick(&mut self) {
        let world = self.host.world();
        let period_ns = u64::from(world.tick_period_ms.get()).saturating_mul(1_000_000);
        self.next_tick_ns = (period_ns > 0).then(|| world.now_ns.get().saturating_add(period_ns));
    }

    /// Answers the calls that are under way, and those that their answers start.
    fn answer_calls(&mut self, make: Make<'_>) -> Result<(), String> {
        loop {
            let calls = std::mem::take(&mut *self.host.world().calls.borrow_mut());
            if calls.is_empty() {
                return Ok(());
            }
            let now = UNIX_EPOCH + Duration::from_nanos(self.host.world().now_ns.get());
            for call in calls {
                let fits = |callout: &Callout| {
                    callout.cluster == call.cluster
                        && callout.path.as_ref().is_none_or(|path| *path == call.path)
                };
                let mut fitting = self
                    .callouts
                    .iter()
                    .enumerate()
                    .filter(|(_, callout)| fits(callout));
                let first = fitting
                    .next()
                    .map(|(index, callout)| (index, callout.clone()));
                let (headers, body) = match first {
                    Some((index, callout)) => {
                        if fitting.next().is_some() {
                            self.callouts.remove(index);
                        }
                        let mut headers =
                            vec![(b":status".to_vec(), callout.status.to_string().into_bytes())];
                        for (name, value) in &callout.headers {
                            headers.push((
                                name.to_ascii_lowercase().into_bytes(),
                                value.bytes(now, make)?,
                            ));
                        }
                        let body = callout.body.map(|body| body.bytes(now, make)).transpose()?;
                        (headers, body.unwrap_or_default())
                    }
                    // What Envoy answers to a call that times out.
                    None => (
                        vec![(b":status".to_vec(), b"504".to_vec())],
                        b"upstream request timeout".to_vec(),
                    ),
                };
                let (count, size) = (headers.len(), body.len());
                *self.host.world().call_answer.borrow_mut() = Some((headers, body));
                if C::METADATA
                    .callbacks
                    .contains(Callbacks::HTTP_CALL_RESPONSE)
                {
                    self.plugin.on_http_call_response(call.id, count, size);
                }
                *self.host.world().call_answer.borrow_mut() = None;
            }
        }
    }
}
