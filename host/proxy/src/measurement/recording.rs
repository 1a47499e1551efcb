//! What a plugin's VM did, exchange after exchange.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use portcullis_runtime::{Callback, Embedder as _, Recorder};

use crate::canary::Offline;

/// What one callback of the ABI took.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    /// Each call, in ns.
    pub(super) ns: Vec<u64>,
    /// Of all calls, where they were counted.
    pub(super) operators: u64,
}

/// What is recorded beside the callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Nothing, since to write it down takes time.
    Times,
    /// Hostcalls and allocations.
    Counts,
}

/// Filled by a VM, while it is asked the same again and again.
#[derive(Debug)]
pub(super) struct Recording {
    what: What,
    is_over: Cell<bool>,
    callbacks: RefCell<BTreeMap<usize, (Callback, Calls)>>,
    /// Of each exchange, all its callbacks, in ns.
    exchanges: RefCell<Vec<(u64, usize)>>,
    hostcalls: RefCell<BTreeMap<&'static str, u64>>,
    allocations: Cell<u64>,
    allocated_bytes: Cell<u64>,
    current_ns: Cell<u64>,
    current_calls: Cell<usize>,
}

impl Recording {
    pub(super) fn new(what: What) -> Self {
        Self {
            what,
            is_over: Cell::new(false),
            callbacks: RefCell::default(),
            exchanges: RefCell::default(),
            hostcalls: RefCell::default(),
            allocations: Cell::new(0),
            allocated_bytes: Cell::new(0),
            current_ns: Cell::new(0),
            current_calls: Cell::new(0),
        }
    }

    /// What comes now is the plugin's end.
    pub(super) fn close(&self) {
        self.is_over.set(true);
    }

    /// An exchange is over: what came since the last one was its own.
    pub(super) fn end_exchange(&self) {
        let exchange = (self.current_ns.take(), self.current_calls.take());
        self.exchanges.borrow_mut().push(exchange);
    }

    /// The last exchange was another than those before. What it added to the callbacks is one call among thousands.
    pub(super) fn forget_exchange(&self) {
        self.current_ns.take();
        self.current_calls.take();
    }

    /// What each exchange took, in ns, less `clock_ns` a callback.
    pub(super) fn exchanges(&self, clock_ns: u64) -> Vec<u64> {
        let exchanges = self.exchanges.borrow();
        let less = exchanges.iter().map(|(ns, calls)| {
            let clock = clock_ns.saturating_mul(u64::try_from(*calls).unwrap_or(u64::MAX));
            ns.saturating_sub(clock)
        });
        less.collect()
    }

    /// In the order of the ABI, as it happens of an exchange.
    pub(super) fn callbacks(&self) -> Vec<(Callback, Calls)> {
        self.callbacks.borrow().values().cloned().collect()
    }

    pub(super) fn hostcalls(&self) -> BTreeMap<&'static str, u64> {
        self.hostcalls.borrow().clone()
    }

    /// How many, and of how many bytes.
    pub(super) fn allocations(&self) -> (u64, u64) {
        (self.allocations.get(), self.allocated_bytes.get())
    }
}

impl Recorder for Recording {
    fn callback(&self, callback: Callback, ns: u64, operators: Option<u64>) {
        if self.is_over.get() {
            return;
        }
        let place = Callback::ALL.iter().position(|it| *it == callback);
        let mut callbacks = self.callbacks.borrow_mut();
        let (_, calls) = callbacks
            .entry(place.unwrap_or(usize::MAX))
            .or_insert_with(|| (callback, Calls::default()));
        calls.ns.push(ns);
        calls.operators += operators.unwrap_or_default();
        self.current_ns.set(self.current_ns.get() + ns);
        self.current_calls.set(self.current_calls.get() + 1);
    }

    fn hostcall(&self, name: &'static str) {
        if self.is_over.get() || self.what == What::Times {
            return;
        }
        *self.hostcalls.borrow_mut().entry(name).or_default() += 1;
    }

    fn allocation(&self, bytes: u32) {
        if self.is_over.get() || self.what == What::Times {
            return;
        }
        self.allocations.set(self.allocations.get() + 1);
        let bytes = self.allocated_bytes.get() + u64::from(bytes);
        self.allocated_bytes.set(bytes);
    }
}

/// What it takes to look at the clock: the least of many looks.
pub(super) fn clock_ns() -> u64 {
    let clock = Offline::new();
    let look = |_| {
        let before = clock.monotonic_ns();
        clock.monotonic_ns().saturating_sub(before)
    };
    (0..1000).map(look).min().unwrap_or_default()
}
