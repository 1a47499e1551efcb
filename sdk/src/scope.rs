//! What everything that a control is handed stands on: the host, the control's name, and, where several controls share
//! a module, what they share of it.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::Error;
use crate::host::{ActiveHost, Host};
use crate::notes::Notes;

/// The host as one control of a module sees it. Cheap to clone; alone in its module a control's scope has no state.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) host: ActiveHost,
    pub(crate) control: &'static str,
    neighbours: Option<Neighbours>,
}

/// What a control in a policy module has of it.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours {
    /// The name of the control's filter; it keeps its shared data apart from its neighbours'.
    pub(crate) filter: Rc<str>,
    /// Of the exchange under way.
    pub(crate) notes: Rc<RefCell<Notes>>,
    /// The tick period that the control last asked for, in ms.
    pub(crate) tick_period_ms: Rc<RefCell<Option<u32>>>,
    /// Calls that the control started since it was last looked at.
    pub(crate) calls: Rc<RefCell<Vec<u32>>>,
}

impl Scope {
    /// Of a control that has its module to itself.
    pub(crate) fn alone(host: ActiveHost, control: &'static str) -> Self {
        Self {
            host,
            control,
            neighbours: None,
        }
    }

    /// Of a control in a policy module.
    pub(crate) fn among(host: ActiveHost, control: &'static str, neighbours: Neighbours) -> Self {
        Self {
            host,
            control,
            neighbours: Some(neighbours),
        }
    }

    /// A property by its path; one that a control of this module set is known without a hostcall.
    pub(crate) fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Error> {
        let found = match path {
            [one] => match self.note(one) {
                Some(value) => return Ok(Some(value)),
                None => self.host.property(one.as_bytes()),
            },
            path => self.host.property(path.join("\0").as_bytes()),
        };
        found.map_err(Error::host("proxy_get_property"))
    }

    /// Sets a property of one segment, for the host and for the neighbours.
    pub(crate) fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.host
            .set_property(name, value)
            .map_err(Error::host("proxy_set_property"))?;
        if let Some(neighbours) = &self.neighbours {
            neighbours.notes.borrow_mut().set_property(name, value);
        }
        Ok(())
    }

    /// Starts an HTTP call; the policy is told whose it is.
    pub(crate) fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Error> {
        let id = self
            .host
            .http_call(cluster, headers, body, timeout_ms)
            .map_err(Error::host("proxy_http_call"))?;
        if let Some(neighbours) = &self.neighbours {
            neighbours.calls.borrow_mut().push(id);
        }
        Ok(id)
    }

    /// Starts a gRPC call; the policy is told whose it is.
    pub(crate) fn grpc_call(
        &self,
        cluster: &str,
        (service, method): (&str, &str),
        message: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Error> {
        let id = self
            .host
            .grpc_call(cluster, service, method, message, timeout_ms)
            .map_err(Error::host("proxy_grpc_call"))?;
        if let Some(neighbours) = &self.neighbours {
            neighbours.calls.borrow_mut().push(id);
        }
        Ok(id)
    }

    /// Asks for ticks; in a policy module the policy asks the host, for all its controls.
    pub(crate) fn set_tick_period(&self, period_ms: u32) -> Result<(), Error> {
        match &self.neighbours {
            Some(neighbours) => {
                *neighbours.tick_period_ms.borrow_mut() = Some(period_ms);
                Ok(())
            }
            None => self
                .host
                .set_tick_period(period_ms)
                .map_err(Error::host("proxy_set_tick_period_milliseconds")),
        }
    }

    /// Asks for a tick at a time, and from then on at that distance.
    pub(crate) fn set_alarm(&self, at_ns: u64) -> Result<(), Error> {
        let left_ns = at_ns.saturating_sub(self.host.now_ns());
        let left_ms = u32::try_from(left_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX);
        self.set_tick_period(left_ms.max(1))
    }

    /// What keys of shared data begin with.
    pub(crate) fn filter(&self) -> Option<Rc<str>> {
        self.neighbours
            .as_ref()
            .map(|neighbours| neighbours.filter.clone())
    }

    fn note(&self, name: &str) -> Option<Vec<u8>> {
        let notes = self.neighbours.as_ref()?.notes.borrow();
        notes.property(name).map(<[u8]>::to_vec)
    }

    /// `connection.tls_version` as the host gives it; asked for once an exchange, whichever control asks.
    pub(crate) fn tls_version(&self) -> Result<Option<Vec<u8>>, Error> {
        let ask = || self.host.property(b"connection\0tls_version");
        let found = match &self.neighbours {
            Some(neighbours) => neighbours.notes.borrow_mut().tls_version(ask),
            None => ask(),
        };
        found.map_err(Error::host("proxy_get_property"))
    }

    /// The host's clock, ns since 1970; in a policy module looked at once a callback of an exchange.
    pub(crate) fn now_ns(&self) -> u64 {
        let look = || self.host.now_ns();
        match &self.neighbours {
            Some(neighbours) => neighbours.notes.borrow_mut().now_ns(look),
            None => look(),
        }
    }
}
