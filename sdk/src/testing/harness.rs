//! A plugin on a host in memory, and its cases run on it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_cases::{
    Callout, Case, Cases, Make, Outcome, Place, RequestSpec, Step, UpstreamSpec, no_make,
};

use super::any::AnyExchange;
use super::life::{Life, connection_properties, request_fields, upstream_fields};
use super::outside::Outside;
use crate::control::Control;
use crate::filter::Filter;
use crate::host::Level;
use crate::host::native::{ExchangeWorld, ForeignFunction, NativeHost};
use crate::plugin::Plugin;
use crate::policy::{ControlSet, Policy};

/// Runs the cases of a file that are for the native place; fails with a diff of each that does not hold.
///
/// ```no_run
/// use portcullis_sdk::prelude::*;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// # struct MyControl;
/// #
/// # impl Control for MyControl {
/// #     const METADATA: Metadata = Metadata::new("my-control", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// # }
///
/// // Relative to the crate's folder, under `cargo test`.
/// portcullis_sdk::testing::check::<MyControl>("cases.yaml");
/// ```
///
/// # Panics
///
/// If the file cannot be read, names another control, or a case does not hold: it is for tests.
pub fn check<T: Tested>(path: impl AsRef<Path>) {
    check_with::<T>(path, &no_make);
}

/// As [`check`], with a function that makes the values of placeholders.
///
/// ```
/// use std::time::SystemTime;
///
/// use portcullis_sdk::testing::Value;
///
/// /// Makes `{user: alice}` in a header's value: `check_with::<MyControl>("cases.yaml", &make)`.
/// fn make(kind: &str, argument: &serde_json::Value, _: SystemTime) -> Result<Vec<u8>, String> {
///     match (kind, argument.as_str()) {
///         ("user", Some(name)) => Ok(format!("user={name}").into_bytes()),
///         _ => Err(format!("there is no {kind}")),
///     }
/// }
///
/// let value: Value = serde_json::from_str(r#"["who:", {"user": "alice"}]"#).unwrap();
/// assert_eq!(value.bytes(SystemTime::UNIX_EPOCH, &make).unwrap(), b"who:user=alice");
/// ```
///
/// # Panics
///
/// As [`check`].
#[expect(clippy::panic, reason = "it is an assertion")]
pub fn check_with<T: Tested>(path: impl AsRef<Path>, make: Make<'_>) {
    let cases = Cases::read(path).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cases.control, T::NAME, "the cases are another control's");
    assert!(
        cases.at(Place::Native).next().is_some(),
        "no case runs natively"
    );
    let failures: Vec<String> = cases
        .at(Place::Native)
        .filter_map(|case| check_case::<T>(case, make).err())
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
fn check_case<T: Tested>(case: &Case, make: Make<'_>) -> Result<(), String> {
    let failed = |step: usize, round: u32, lines: String| {
        format!(
            "case {:?}, step {}, round {}:\n{lines}",
            case.name,
            step + 1,
            round + 1
        )
    };
    let mut harness = Harness::<T>::new(SystemTime::now());
    harness.set_callouts(case.callouts.clone());
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

/// What a [`Harness`] can hold: any control, or a [`Policy`] of several.
///
/// ```
/// use portcullis_sdk::testing::Tested;
///
/// /// For a test that is the same for several controls.
/// fn file<T: Tested>() -> String {
///     format!("cases/{}.yaml", T::NAME)
/// }
/// ```
pub trait Tested: 'static {
    #[doc(hidden)]
    type Filter: Filter;
    /// As in the case file.
    const NAME: &'static str;
}

impl<C: Control> Tested for C {
    type Filter = Plugin<C>;
    const NAME: &'static str = C::METADATA.name;
}

impl<S: ControlSet> Tested for Policy<S> {
    type Filter = Self;
    const NAME: &'static str = "policy";
}

/// A control on a host in memory. The clock is handed in and moves only by [`advance`](Self::advance).
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{Harness, Step, no_make};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
///
/// /// Counts requests.
/// struct Counts(Counter);
///
/// impl Control for Counts {
///     const METADATA: Metadata = Metadata::new("counts", "1.0.0", Callbacks::REQUEST_HEADERS);
///     type Config = Config;
///     type State = ();
///
///     fn configure(_: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
///         Ok(Self(plugin.counter("requests")))
///     }
///
///     fn on_request_headers(&mut self, _: &mut (), _: &mut Request) -> Result<Decision, Error> {
///         self.0.increment(1);
///         Ok(Decision::Continue)
///     }
/// }
///
/// let mut harness = Harness::<Counts>::new(SystemTime::UNIX_EPOCH);
/// harness.configure("{}")?;
/// harness.exchange(&Step::default(), &no_make)?;
/// harness.advance(Duration::from_secs(60), &no_make)?;
/// harness.exchange(&Step::default(), &no_make)?;
/// assert_eq!(harness.metric("portcullis.counts.requests"), Some(2));
/// assert!(harness.log().is_empty());
/// # Ok::<(), String>(())
/// ```
pub struct Harness<T: Tested> {
    host: NativeHost,
    filter: T::Filter,
    outside: Outside,
    exchanges: u32,
}

impl<T: Tested> Harness<T> {
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
            filter: T::Filter::new(host.clone()),
            host,
            outside: Outside::default(),
            exchanges: 0,
        }
    }

    /// Configures the plugin with JSON; the error is what it logged.
    pub fn configure(&mut self, json: &str) -> Result<(), String> {
        *self.host.world().configuration.borrow_mut() = json.as_bytes().to_vec();
        let logged = self.log().len();
        if self.filter.configure() {
            self.outside.arm_tick(&self.host);
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
    ///
    /// ```
    /// use portcullis_sdk::testing::{Callout, Harness, Tested};
    ///
    /// /// The service is there, and says no.
    /// fn denied<T: Tested>(harness: &mut Harness<T>) {
    ///     harness.set_callouts(vec![Callout::new("policy", 403)]);
    /// }
    /// ```
    pub fn set_callouts(&mut self, callouts: Vec<Callout>) {
        self.outside.set_callouts(&self.host, callouts);
    }

    /// Gives the host a foreign function.
    ///
    /// ```
    /// use portcullis_sdk::testing::{Harness, Tested};
    ///
    /// /// A host that can only turn bytes around.
    /// fn backwards<T: Tested>(harness: &mut Harness<T>) {
    ///     harness.set_foreign_function("reverse", Box::new(|bytes| Ok(bytes.iter().rev().copied().collect())));
    /// }
    /// ```
    pub fn set_foreign_function(&mut self, name: &str, function: ForeignFunction) {
        self.host
            .world()
            .foreign
            .borrow_mut()
            .insert(name.into(), function);
    }

    /// Lets each look at the clock move it by so much, so that what a control measures takes time.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use portcullis_sdk::testing::{Harness, Tested};
    ///
    /// fn slow_host<T: Tested>(harness: &mut Harness<T>) {
    ///     harness.set_clock_step(Duration::from_micros(10));
    /// }
    /// ```
    pub fn set_clock_step(&mut self, step: Duration) {
        let step = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        self.host.world().clock_step_ns.set(step);
    }

    /// Lets time pass: every tick that falls due, and the answers to the calls it starts.
    pub fn advance(&mut self, by: Duration, make: Make<'_>) -> Result<(), String> {
        self.outside.advance(&self.host, &mut self.filter, by, make)
    }

    /// Runs one exchange to its end. An error is a value that cannot be made.
    pub fn exchange(&mut self, step: &Step, make: Make<'_>) -> Result<Outcome, String> {
        self.outside
            .answer_calls(&self.host, &mut self.filter, make)?;
        let now = UNIX_EPOCH + Duration::from_nanos(self.host.world().now_ns.get());
        self.exchanges += 1;
        self.outside.begin();
        let request = request_fields(&step.request, u64::from(self.exchanges), now, make)?;
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
        let life = Life::new(
            &self.host,
            &mut self.filter,
            &mut self.outside,
            make,
            self.exchanges,
        );
        let outcome = life.run(step, answer);
        self.host.set_exchange(None);
        outcome
    }

    /// Runs one exchange of any bytes to its end.
    ///
    /// ```
    /// use portcullis_sdk::testing::{AnyExchange, Harness, Tested};
    ///
    /// /// For `proptest`: whatever the bytes, something comes of them.
    /// fn decides<T: Tested>(harness: &mut Harness<T>, bytes: &[u8]) -> bool {
    ///     harness.any_exchange(&AnyExchange::new(&["cookie"], bytes)).status < 600
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// If the control does: that is what it is for.
    pub fn any_exchange(&mut self, any: &AnyExchange) -> Outcome {
        // No placeholder is in it, so every value can be made.
        let _ = self
            .outside
            .answer_calls(&self.host, &mut self.filter, &no_make);
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
        self.outside.begin();
        let mut request = request_fields(&spec, u64::from(self.exchanges), UNIX_EPOCH, &no_make)
            .unwrap_or_default();
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
        let life = Life::new(
            &self.host,
            &mut self.filter,
            &mut self.outside,
            &no_make,
            self.exchanges,
        );
        let outcome = life.run_bytes(&any.body, answer, any.answer_body.clone());
        self.host.set_exchange(None);
        // A request that nothing releases has no outcome: the host ends it in the end.
        outcome.unwrap_or_default()
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
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::prelude::*;
    /// # use portcullis_sdk::testing::Harness;
    /// # #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// # struct Config {}
    /// struct Names;
    ///
    /// impl Control for Names {
    ///     const METADATA: Metadata = Metadata::new("names", "1.0.0", Callbacks::REQUEST_HEADERS);
    ///     type Config = Config;
    ///     type State = ();
    ///
    ///     fn configure(_: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
    ///         plugin.declare_owned_request_headers(&["x-user"]);
    ///         Ok(Self)
    ///     }
    /// }
    ///
    /// let mut harness = Harness::<Names>::new(SystemTime::UNIX_EPOCH);
    /// harness.configure("{}")?;
    /// assert_eq!(harness.owned_request_headers(), ["x-user"]);
    /// # Ok::<(), String>(())
    /// ```
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
}
