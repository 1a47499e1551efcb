//! Keys fetched from the issuer: by one worker, at ticks, for all of them.
//!
//! Under names made of a digest of the source, shared data holds
//! - the *set* as it was fetched, behind the second in which its fetch began and the second until which it is fresh;
//! - the *stamp*, that first second alone: eight bytes that every request reads to see whether its set is the present one, in
//!   VMs that have no ticks too (a fresh VM per request);
//! - the *lease*: until when a worker is fetching, and when one last began. It is taken by compare-and-swap, so one fetches;
//! - the *wish*: when a token last had an unknown `kid`. It brings the next fetch forward, but never below
//!   [`limits::EARLY_REFETCH_SECONDS`] after the last.
//!
//! A fetch that fails, or whose answer holds no usable key, changes nothing: the old keys serve on, up to
//! [`limits::STALE_SECONDS_MAX`] after they were fresh. All times are seconds since 1970.

use std::time::Duration;

use portcullis_sdk::{
    CallId, CasOutcome, Error, Field, HttpCallResponse, Level, PluginContext, SharedData,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::algorithm::Algorithm;
use crate::jwks::KeySet;
use crate::{json, limits, seconds};

/// Where keys are fetched, and how.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) cluster: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// How long keys are fresh when the answer does not say.
    pub(crate) fresh_seconds: u64,
    pub(crate) timeout: Duration,
}

/// The fetched keys of an issuer, as this VM has them.
#[derive(Debug)]
pub(crate) struct Remote {
    source: Source,
    algorithms: Vec<Algorithm>,
    names: Names,
    current: Option<Current>,
    /// The fetch under way from this VM, and when it must have ended.
    call: Option<(CallId, u64)>,
    unknown: UnknownKids,
}

#[derive(Debug)]
struct Current {
    keys: KeySet,
    stamp: u64,
    fresh_until: u64,
}

/// Names in shared data.
#[derive(Debug)]
struct Names {
    set: String,
    stamp: String,
    lease: String,
    wish: String,
}

impl Remote {
    pub(crate) fn new(source: Source, algorithms: Vec<Algorithm>) -> Self {
        let digest = Sha256::new()
            .chain_update(&source.cluster)
            .chain_update([0])
            .chain_update(&source.authority)
            .chain_update([0])
            .chain_update(&source.path)
            .finalize();
        let digest: String = digest
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let name = |kind| format!("jwt-auth.jwks.{digest}.{kind}");
        let names = Names {
            set: name("set"),
            stamp: name("stamp"),
            lease: name("lease"),
            wish: name("wish"),
        };
        Self {
            source,
            algorithms,
            names,
            current: None,
            call: None,
            unknown: UnknownKids::default(),
        }
    }

    /// Lays out shared data, and takes over what other workers have fetched.
    pub(crate) fn start(&mut self, shared: &SharedData) -> Result<(), Error> {
        // Whether or not another worker was first.
        let _ = shared.create(&self.names.lease, &Lease::default().encode())?;
        self.sync(shared).map(drop)
    }

    pub(crate) fn keys(&self, now: u64) -> Option<&KeySet> {
        let current = self.current.as_ref()?;
        (now <= current
            .fresh_until
            .saturating_add(limits::STALE_SECONDS_MAX))
        .then_some(&current.keys)
    }

    /// Whether the key of that number is still there.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.keys.holds(number))
    }

    /// Seconds since the fetch of the present keys began.
    pub(crate) fn age(&self, now: u64) -> Option<u64> {
        self.current
            .as_ref()
            .map(|current| now.saturating_sub(current.stamp))
    }

    /// Takes over the shared set if it is another than this VM has; true if so. One hostcall if not.
    pub(crate) fn sync(&mut self, shared: &SharedData) -> Result<bool, Error> {
        let stamp = read_number(shared, &self.names.stamp)?;
        if stamp.is_none() || stamp == self.current.as_ref().map(|current| current.stamp) {
            return Ok(false);
        }
        let Some((bytes, _)) = shared.get(&self.names.set)? else {
            return Ok(false);
        };
        let (stamp, rest) = split_number(&bytes)?;
        let (fresh_until, text) = split_number(rest)?;
        let (mut keys, _) = read_set(text, &self.algorithms).map_err(Error::new)?;
        if let Some(old) = self.current.take() {
            keys.keep_from(old.keys);
        }
        self.current = Some(Current {
            keys,
            stamp,
            fresh_until,
        });
        Ok(true)
    }

    /// A token had a `kid` that is not in the set: wishes for a fetch, unless this `kid` did so lately.
    pub(crate) fn wish(&mut self, shared: &SharedData, kid: &str, now: u64) -> Result<(), Error> {
        if self.unknown.is_new(kid, now) {
            let _ = shared.set(&self.names.wish, &now.to_le_bytes(), None)?;
        }
        Ok(())
    }

    /// Starts a fetch if one is due and no other worker is at it.
    pub(crate) fn tick(&mut self, plugin: &PluginContext) -> Result<(), Error> {
        let now = seconds(plugin.now());
        let shared = plugin.shared_data();
        if self.call.is_some_and(|(_, end)| now < end) {
            return Ok(());
        }
        let Some(pause) = self.pause(&shared, now)? else {
            return Ok(());
        };
        let Some((bytes, cas)) = shared.get(&self.names.lease)? else {
            return Ok(());
        };
        if !Lease::decode(&bytes)?.is_free(now, pause) {
            return Ok(());
        }
        let end = now + self.source.timeout.as_secs() + limits::LEASE_MARGIN_SECONDS;
        let lease = Lease {
            held_until: end,
            began: now,
        };
        if shared.set(&self.names.lease, &lease.encode(), Some(cas))? == CasOutcome::Mismatch {
            return Ok(());
        }
        let headers = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", self.source.authority.as_str()),
            (":path", &self.source.path),
            ("accept", "application/jwk-set+json, application/json"),
        ];
        match plugin.http_call(&self.source.cluster, &headers, &[], self.source.timeout) {
            Ok(id) => self.call = Some((id, end)),
            Err(error) => self.finish(plugin, Err(&error.to_string()))?,
        }
        Ok(())
    }

    /// How long the last fetch must be past for one to begin now; `None` if none is due.
    fn pause(&self, shared: &SharedData, now: u64) -> Result<Option<u64>, Error> {
        let Some(current) = self
            .current
            .as_ref()
            .filter(|current| now < current.fresh_until)
        else {
            return Ok(Some(limits::RETRY_SECONDS));
        };
        let wished =
            read_number(shared, &self.names.wish)?.is_some_and(|wish| wish >= current.stamp);
        Ok(wished.then_some(limits::EARLY_REFETCH_SECONDS))
    }

    /// Whether a call is this one's; it is forgotten then.
    pub(crate) fn take_call(&mut self, id: CallId) -> bool {
        self.call.take_if(|(call, _)| *call == id).is_some()
    }

    /// A fetch is answered.
    pub(crate) fn answered(
        &mut self,
        plugin: &PluginContext,
        response: &HttpCallResponse<'_>,
    ) -> Result<(), Error> {
        let result = self.read_answer(plugin, response);
        match &result {
            Ok((fresh_seconds, body)) => self.finish(plugin, Ok((*fresh_seconds, body))),
            Err(reason) => self.finish(plugin, Err(reason)),
        }
    }

    /// How long the set is fresh, and the set. Faulty keys in it are named in the log.
    fn read_answer(
        &self,
        plugin: &PluginContext,
        response: &HttpCallResponse<'_>,
    ) -> Result<(u64, Vec<u8>), String> {
        match response.status().map_err(|error| error.to_string())? {
            Some(200) => {}
            Some(status) => return Err(format!("the answer is {status}")),
            None => return Err("no answer".to_owned()),
        }
        let header = |name| response.header(name).map_err(|error| error.to_string());
        let fresh_seconds = fresh_seconds(
            header("cache-control")?.as_deref(),
            header("age")?.as_deref(),
        );
        let body = response
            .body(limits::JWKS_BYTES_MAX)
            .map_err(|error| error.to_string())?;
        let (keys, faults) = read_set(&body, &self.algorithms)?;
        for fault in faults {
            let index = fault.index as u64;
            let fields = [
                ("authority", (&*self.source.authority).into()),
                ("key", index.into()),
                ("reason", fault.reason.into()),
            ];
            plugin.log(Level::Warn, "key_refused", &fields);
        }
        if keys.is_empty() {
            return Err("no key serves one of the allowed algorithms".to_owned());
        }
        Ok((fresh_seconds.unwrap_or(self.source.fresh_seconds), body))
    }

    /// Gives the lease back, and shares the set or says why there is none.
    fn finish(
        &mut self,
        plugin: &PluginContext,
        result: Result<(u64, &[u8]), &str>,
    ) -> Result<(), Error> {
        let shared = plugin.shared_data();
        let Some((bytes, cas)) = shared.get(&self.names.lease)? else {
            return Ok(());
        };
        let lease = Lease::decode(&bytes)?;
        match result {
            Ok((fresh_seconds, body)) => {
                let fresh_until = seconds(plugin.now()).saturating_add(fresh_seconds);
                let set = [
                    &lease.began.to_le_bytes()[..],
                    &fresh_until.to_le_bytes(),
                    body,
                ]
                .concat();
                // The set first: who sees the stamp finds the set.
                let _ = shared.set(&self.names.set, &set, None)?;
                let _ = shared.set(&self.names.stamp, &lease.began.to_le_bytes(), None)?;
                plugin.counter("jwks_fetched").increment(1);
            }
            Err(reason) => {
                plugin.counter("jwks_fetch_failed").increment(1);
                let fields: [(&str, Field<'_>); 3] = [
                    ("cluster", (&*self.source.cluster).into()),
                    ("authority", (&*self.source.authority).into()),
                    ("reason", reason.into()),
                ];
                plugin.log(Level::Warn, "jwks_fetch_failed", &fields);
            }
        }
        // A worker that took the lease meanwhile keeps it.
        let _ = shared.set(
            &self.names.lease,
            &Lease {
                held_until: 0,
                ..lease
            }
            .encode(),
            Some(cas),
        )?;
        Ok(())
    }
}

fn read_set(
    text: &[u8],
    algorithms: &[Algorithm],
) -> Result<(KeySet, Vec<crate::jwks::Fault>), &'static str> {
    let set = json::object(text).ok_or("not a JSON object with unique members")?;
    KeySet::read(&Value::Object(set), algorithms)
}

/// RFC 9111 sections 4.2.1 and 5.2.2, held between the limits; `None` if the answer does not say.
fn fresh_seconds(cache_control: Option<&[u8]>, age: Option<&[u8]>) -> Option<u64> {
    let text = str::from_utf8(cache_control?).ok()?;
    let directive = |directive: &str| {
        let (name, value) = directive
            .trim()
            .split_once('=')
            .unwrap_or((directive.trim(), ""));
        match name.to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => Some(0),
            "max-age" => value.trim().trim_matches('"').parse::<u64>().ok(),
            _ => None,
        }
    };
    let most = text.split(',').filter_map(directive).min()?;
    let age = age
        .and_then(|age| str::from_utf8(age).ok()?.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(
        most.saturating_sub(age)
            .clamp(limits::FRESH_SECONDS_MIN, limits::FRESH_SECONDS_MAX),
    )
}

/// Who may fetch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lease {
    held_until: u64,
    /// When the last fetch began; 0 if none did.
    began: u64,
}

impl Lease {
    /// Times ahead of what can be mean that the clock was set back: they hold nobody.
    fn is_free(self, now: u64, pause: u64) -> bool {
        let longest = u64::from(limits::FETCH_MS_MAX) / 1000 + limits::LEASE_MARGIN_SECONDS;
        let held = self.held_until > now && self.held_until - now <= longest;
        let paused = now.checked_sub(self.began).is_some_and(|past| past < pause);
        !held && !paused
    }

    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (held_until, began) = bytes.split_at_mut(8);
        held_until.copy_from_slice(&self.held_until.to_le_bytes());
        began.copy_from_slice(&self.began.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (held_until, rest) = split_number(bytes)?;
        let (began, _) = split_number(rest)?;
        Ok(Self { held_until, began })
    }
}

fn read_number(shared: &SharedData, name: &str) -> Result<Option<u64>, Error> {
    shared
        .get(name)?
        .map(|(bytes, _)| split_number(&bytes).map(|(number, _)| number))
        .transpose()
}

fn split_number(bytes: &[u8]) -> Result<(u64, &[u8]), Error> {
    let (number, rest) = bytes
        .split_first_chunk()
        .ok_or(Error::Malformed("a value in shared data"))?;
    Ok((u64::from_le_bytes(*number), rest))
}

/// Key ids that were not found lately, at most [`limits::UNKNOWN_KIDS_MAX`].
#[derive(Debug, Default)]
struct UnknownKids {
    /// The oldest first.
    kids: std::collections::VecDeque<(String, u64)>,
}

impl UnknownKids {
    /// Whether a key id was not asked for lately; from now on it was.
    fn is_new(&mut self, kid: &str, now: u64) -> bool {
        self.kids
            .retain(|(_, seen)| now.saturating_sub(*seen) < limits::UNKNOWN_KID_SECONDS);
        if self.kids.iter().any(|(known, _)| known == kid) {
            return false;
        }
        if self.kids.len() >= limits::UNKNOWN_KIDS_MAX {
            self.kids.pop_front();
        }
        self.kids.push_back((kid.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Lease, UnknownKids, fresh_seconds, limits};

    #[test]
    fn freshness_is_held_between_its_limits() {
        for (cache_control, age, fresh) in [
            (None, None, None),
            (Some("public"), None, None),
            (Some("max-age=abc"), None, None),
            (Some("public, max-age=300"), None, Some(300)),
            (Some("Max-Age=\"300\" ,must-revalidate"), None, Some(300)),
            (Some("max-age=300"), Some("100"), Some(200)),
            (Some("max-age=300"), Some("x"), Some(300)),
            (Some("max-age=300"), Some("1000"), Some(60)),
            (Some("max-age=300, max-age=100"), None, Some(100)),
            (Some("max-age=1"), None, Some(60)),
            (Some("max-age=99999999"), None, Some(86_400)),
            (Some("max-age=99999999999999999999999"), None, None),
            (Some("no-store"), None, Some(60)),
            (Some("no-cache, max-age=300"), None, Some(60)),
            (Some("s-maxage=300"), None, None),
        ] {
            let found = fresh_seconds(cache_control.map(str::as_bytes), age.map(str::as_bytes));
            assert_eq!(found, fresh, "{cache_control:?} {age:?}");
        }
        assert_eq!(fresh_seconds(Some(b"max-age=300\xff"), None), None);
    }

    #[test]
    fn a_lease_is_free_when_none_holds_it_and_the_pause_is_over() {
        for (held_until, began, now, pause, free) in [
            (0, 0, 100, 30, true),
            (100, 90, 99, 5, false),
            (100, 90, 100, 5, true),
            (0, 90, 94, 5, false),
            (0, 90, 95, 5, true),
            (0, 90, 119, 30, false),
            (0, 90, 120, 30, true),
            (0, 1000, 100, 30, true),
            (1000, 90, 100, 5, true),
        ] {
            let lease = Lease { held_until, began };
            assert_eq!(lease.is_free(now, pause), free, "{lease:?} at {now}");
            assert_eq!(Lease::decode(&lease.encode()).unwrap(), lease);
        }
        assert!(Lease::decode(&[0; 15]).is_err());
    }

    #[test]
    fn unknown_kids_are_remembered_within_bounds() {
        let mut unknown = UnknownKids::default();
        assert!(unknown.is_new("a", 1000));
        assert!(!unknown.is_new("a", 1000 + limits::UNKNOWN_KID_SECONDS - 1));
        assert!(unknown.is_new("a", 1000 + limits::UNKNOWN_KID_SECONDS));
        for number in 0..1000 {
            assert!(unknown.is_new(&number.to_string(), 2000));
            assert!(unknown.kids.len() <= limits::UNKNOWN_KIDS_MAX);
        }
        assert!(!unknown.is_new("999", 2000));
        assert!(unknown.is_new("a", 2000), "the oldest went");
    }
}
