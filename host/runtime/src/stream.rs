//! One exchange as the VMs of its chain reach it.
//!
//! A stream's callbacks run one at a time, yet a callback of another exchange, a tick or a callout's answer may act on it through
//! `proxy_set_effective_context`. So what a hostcall touches stands here, behind an `Rc`, and what only the chain needs does not.
//! Nothing is borrowed across a call into a guest, but for the value that a hostcall is about to hand out: while the guest's
//! allocator runs no hostcall is served that could reach here.

use std::cell::{Cell, RefCell};

use crate::{
    body::Body,
    embedder::StreamToken,
    exchange::{Direction, Exchange},
    fields::Fields,
    filter_state::Properties,
    limits::HEADER_BYTES_MAX,
    local_response::LocalResponse,
};

pub(crate) struct StreamCell {
    /// Not an HTTP exchange but a TCP connection, whose client stands for the request and whose upstream for the response.
    pub(crate) is_tcp: bool,
    pub(crate) exchange: RefCell<Exchange>,
    pub(crate) token: StreamToken,
    /// What filters left for later ones; `proxy_set_property`.
    pub(crate) properties: RefCell<Properties>,
    /// A filter changed what routes look at, or asked for the route to be chosen anew.
    pub(crate) route_stale: Cell<bool>,
    /// Bytes that guests have written into the maps since these were last measured; see [`StreamCell::measure`].
    written: Cell<usize>,
    pub(crate) filters: Box<[FilterCell]>,
}

impl StreamCell {
    pub(crate) fn new(exchange: Exchange, token: StreamToken, filters: usize) -> Self {
        let filters = std::iter::repeat_with(FilterCell::default)
            .take(filters)
            .collect();
        Self {
            is_tcp: false,
            exchange: RefCell::new(exchange),
            token,
            properties: RefCell::default(),
            route_stale: Cell::new(false),
            written: Cell::new(0),
            filters,
        }
    }

    pub(crate) fn of_tcp(exchange: Exchange, token: StreamToken, filters: usize) -> Self {
        Self {
            is_tcp: true,
            ..Self::new(exchange, token, filters)
        }
    }

    /// Whether `bytes` more fit into `fields`. Measuring a map walks through all of it, so it is done again only when guests
    /// have written a quarter of the bound: until then a map that held what a client may send stays within it.
    pub(crate) fn measure(&self, fields: &dyn Fields, bytes: usize) -> bool {
        let written = self.written.get().saturating_add(bytes);
        if written <= HEADER_BYTES_MAX / 4 {
            self.written.set(written);
            return true;
        }
        self.written.set(0);
        let fits = fields.byte_size().saturating_add(bytes) <= HEADER_BYTES_MAX;
        // What does not fit is measured each time: a guest that is refused goes on trying.
        if !fits {
            self.written.set(HEADER_BYTES_MAX);
        }
        fits
    }
}

/// One filter's part in one exchange.
#[derive(Default)]
pub(crate) struct FilterCell {
    /// Its context in its VM; 0 where there is none.
    pub(crate) context: Cell<u32>,
    /// The root context above it.
    pub(crate) root: Cell<u32>,
    /// CPU time of its callbacks so far, by epoch ticks, ns.
    pub(crate) cpu_ns: Cell<u64>,
    /// What it may touch now.
    pub(crate) open: Cell<Open>,
    pub(crate) asked: Cell<Asked>,
    /// What it held of the two bodies, the chunk at hand included.
    pub(crate) bodies: [RefCell<Body>; 2],
    /// Whether it holds them back, and if so, whether their end was seen.
    pub(crate) held: [Cell<Option<bool>>; 2],
    pub(crate) local: RefCell<Option<LocalResponse>>,
    /// Its VM broke while the exchange was under way.
    pub(crate) broken: Cell<bool>,
}

impl FilterCell {
    pub(crate) fn body(&self, direction: Direction) -> &RefCell<Body> {
        side(&self.bodies, direction)
    }

    pub(crate) fn held(&self, direction: Direction) -> &Cell<Option<bool>> {
        side(&self.held, direction)
    }
}

fn side<T>([request, response]: &[T; 2], direction: Direction) -> &T {
    match direction {
        Direction::Request => request,
        Direction::Response => response,
    }
}

/// Maps and bodies that a filter may touch. A map is open from the callback that shows it until the filter lets it pass, as in Envoy:
/// request headers cannot be read from a response phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Open(u16);

impl Open {
    pub(crate) const REQUEST_HEADERS: Self = Self(1);
    pub(crate) const REQUEST_BODY: Self = Self(1 << 1);
    pub(crate) const REQUEST_TRAILERS: Self = Self(1 << 2);
    pub(crate) const RESPONSE_HEADERS: Self = Self(1 << 3);
    pub(crate) const RESPONSE_BODY: Self = Self(1 << 4);
    pub(crate) const RESPONSE_TRAILERS: Self = Self(1 << 5);
    /// The body is at its end and has no trailers: a write to the trailers makes them.
    pub(crate) const NEW_REQUEST_TRAILERS: Self = Self(1 << 6);
    pub(crate) const NEW_RESPONSE_TRAILERS: Self = Self(1 << 7);
    /// The exchange is over: all maps may be read, none written.
    pub(crate) const LOG: Self = Self(1 << 8);
    pub(crate) const DOWNSTREAM_DATA: Self = Self(1 << 9);
    pub(crate) const UPSTREAM_DATA: Self = Self(1 << 10);
    const REQUEST: Self = Self(0b0100_0111);
    pub(crate) const RESPONSE: Self = Self(0b1011_1000);

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub(crate) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// After `proxy_continue_stream`, Envoy shows nothing of the request any more.
    #[must_use]
    pub(crate) fn without_request(self) -> Self {
        self.without(Self::REQUEST)
    }
}

/// What a filter asked for, to be done when the VM has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) resume_request: bool,
    pub(crate) resume_response: bool,
    pub(crate) close: bool,
}

impl Asked {
    pub(crate) fn resume(self, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.resume_request,
            Direction::Response => self.resume_response,
        }
    }

    #[must_use]
    pub(crate) fn with_resume(self, direction: Direction, resume: bool) -> Self {
        match direction {
            Direction::Request => Self {
                resume_request: resume,
                ..self
            },
            Direction::Response => Self {
                resume_response: resume,
                ..self
            },
        }
    }
}
