//! The filter chain, and one exchange on its way through.
//!
//! Requests pass the filters in order, responses in reverse. A filter that pauses holds what it was shown; a filter that answers ends
//! the request's way at once, and its answer passes back through the filters that the request had entered. What no filter of the
//! chain reads costs nothing.
//!
//! Invariants: a local response is final; an exchange whose VM broke is refused (503, or a reset once headers have gone), whatever the
//! failure policy; while a filter pauses it holds at most [`Limits::body_bytes`](crate::Limits::body_bytes).

mod ends;
mod observer;
mod pause;
mod phases;
mod tcp;

use std::{
    cell::{Ref, RefMut},
    fmt,
    rc::Rc,
};

use bytes::Bytes;

use crate::{
    abi::{Callback, Callbacks, Status},
    body::Body,
    embedder::StreamToken,
    exchange::{Direction, Exchange},
    plugin::Plugin,
    stream::{FilterCell, StreamCell},
    vm::Vm,
};

pub use observer::{Observer, Verdict};
pub use tcp::{Peer, TcpProgress, TcpStream};

/// The plugins of a route, or of a TCP listener, in order.
#[derive(Clone)]
pub struct Chain(Rc<Filters>);

struct Filters {
    plugins: Vec<Filter>,
    /// Callbacks that at least one has.
    any: Callbacks,
}

struct Filter {
    plugin: Rc<Plugin>,
    callbacks: Callbacks,
    has_streams: bool,
    has_connections: bool,
    stops_headers_alone: bool,
}

impl Filter {
    /// Whether its callbacks on an exchange have used up their CPU time. Asked before one more: no VM is lost.
    fn is_overspent(&self, cell: &FilterCell) -> bool {
        let spent_ns = cell.cpu_ns.get();
        let is_overspent = spent_ns > 0
            && spent_ns
                >= self
                    .plugin
                    .spec()
                    .limits
                    .request_cpu_ms
                    .saturating_mul(1_000_000);
        if is_overspent {
            self.plugin.stats_ref().count_cpu_denial();
        }
        is_overspent
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins()).finish()
    }
}

impl Chain {
    /// A chain of these plugins, the first nearest to the client.
    pub fn new(plugins: Vec<Rc<Plugin>>) -> Self {
        let mut any = Callbacks::default();
        let plugins: Vec<_> = plugins
            .into_iter()
            .map(|plugin| Filter {
                callbacks: plugin.callbacks(),
                has_streams: plugin.has_streams(),
                has_connections: plugin.has_connections(),
                stops_headers_alone: plugin.stops_headers_alone(),
                plugin,
            })
            .collect();
        for callback in Callback::ALL {
            if plugins
                .iter()
                .any(|filter| filter.callbacks.contains(*callback))
            {
                any = any.with(*callback);
            }
        }
        Self(Rc::new(Filters { plugins, any }))
    }

    /// Its plugins, in order.
    pub fn plugins(&self) -> impl Iterator<Item = &Rc<Plugin>> {
        self.0.plugins.iter().map(|filter| &filter.plugin)
    }

    /// Whether any filter reads request bodies; if none does, they need not be handed in.
    pub fn reads_request_body(&self) -> bool {
        self.0.any.contains(Callback::RequestBody)
    }

    /// Whether any filter reads request trailers.
    pub fn reads_request_trailers(&self) -> bool {
        self.0.any.contains(Callback::RequestTrailers)
    }

    /// Whether any filter reads response headers.
    pub fn reads_response_headers(&self) -> bool {
        self.0.any.contains(Callback::ResponseHeaders)
    }

    /// Whether any filter reads response bodies; if none does, they need not be handed in.
    pub fn reads_response_body(&self) -> bool {
        self.0.any.contains(Callback::ResponseBody)
    }

    /// Whether any filter reads response trailers.
    pub fn reads_response_trailers(&self) -> bool {
        self.0.any.contains(Callback::ResponseTrailers)
    }
}

/// How far an exchange got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All handed in has passed the last filter: forward it.
    Continue,
    /// A filter holds this phase. In a headers phase: do not read the body, wait for [`Embedder::wake`](crate::Embedder::wake), unless
    /// [`HttpStream::wants_body`] says otherwise. In a body phase: go on feeding; past the bound it becomes `Respond` (413) or `Reset`.
    Pause,
    /// A local response is in [`Exchange::response_headers`], its body in [`HttpStream::take_local_body`]: drop the upstream, then call
    /// [`HttpStream::response_headers`] and [`HttpStream::response_body`] as for an upstream's answer. The stream knows which filters
    /// it still passes. Bodies handed in earlier are gone.
    Respond,
    /// Reset the exchange without an answer: a filter closed it, or broke when headers had gone.
    Reset,
}

/// One exchange on its way through a chain.
///
/// Dropping it ends it, as [`HttpStream::finish`] does.
pub struct HttpStream {
    filters: Rc<Filters>,
    cell: Rc<StreamCell>,
    /// By filter; `None` where it was not entered, or is passed by.
    vms: Vec<Option<Rc<Vm>>>,
    request: Flow,
    response: Flow,
    local_body: Bytes,
    end: Option<Progress>,
    is_finished: bool,
    observer: Option<Box<dyn Observer>>,
}

/// One direction. Steps count filters in the order of that direction.
#[derive(Default)]
struct Flow {
    /// The step that sees the headers next, or holds them.
    headers_step: usize,
    headers_end: bool,
    /// All filters have let the headers pass.
    headers_passed: bool,
    trailers_step: usize,
    trailers_passed: bool,
    /// The filter at `headers_step` holds the headers.
    stop: Option<Stop>,
    /// The filter at `trailers_step` holds the trailers.
    trailers_held: bool,
    /// Filters that hold body bytes.
    held: usize,
    /// Steps below it do not see the body: it is of a response made behind them.
    body_from: usize,
    early: Early,
    /// What has passed the last filter.
    out: Body,
    /// The response was made here.
    is_local: bool,
    /// It was, and its headers have not been shown to any filter.
    is_due: bool,
}

/// What waits before a filter that holds headers and all.
#[derive(Default)]
struct Early {
    body: Body,
    /// The body's end is there.
    end: bool,
    has_trailers: bool,
}

/// What a filter that holds headers holds with them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Body and trailers, unseen.
    All,
    /// What of body and trailers it says, as it sees them.
    Alone,
}

impl fmt::Debug for HttpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStream")
            .field("token", &self.cell.token)
            .field("end", &self.end)
            .field("is_finished", &self.is_finished)
            .finish_non_exhaustive()
    }
}

impl HttpStream {
    /// An exchange about to enter `chain`.
    pub fn new(chain: &Chain, exchange: Exchange, token: StreamToken) -> Self {
        let filters = Rc::clone(&chain.0);
        let count = filters.plugins.len();
        Self {
            cell: Rc::new(StreamCell::new(exchange, token, count)),
            vms: vec![None; count],
            filters,
            request: Flow::default(),
            response: Flow::default(),
            local_body: Bytes::new(),
            end: None,
            is_finished: false,
            observer: None,
        }
    }

    /// The exchange. Not to be held across another call on a stream or a plugin, nor across an `await`: hostcalls would fail meanwhile.
    pub fn exchange(&self) -> Ref<'_, Exchange> {
        self.cell.exchange.borrow()
    }

    /// The exchange. Not to be held across another call on a stream or a plugin, nor across an `await`: hostcalls would fail meanwhile.
    pub fn exchange_mut(&mut self) -> RefMut<'_, Exchange> {
        self.cell.exchange.borrow_mut()
    }

    /// The embedder's name for it.
    pub fn token(&self) -> StreamToken {
        self.cell.token
    }

    /// Leaves a property for the filters of this exchange, as one before them would with `proxy_set_property`.
    ///
    /// # Errors
    ///
    /// `INTERNAL_FAILURE` above the bound on an exchange's properties.
    pub fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status> {
        let mut properties = self.cell.properties.borrow_mut();
        properties.set(path, value, false)
    }

    /// Shows the request's headers; `end_of_stream` when neither body nor trailers follow.
    pub fn request_headers(&mut self, end_of_stream: bool) -> Progress {
        self.headers(Direction::Request, end_of_stream)
    }

    /// Shows body bytes; `end_of_stream` when neither more nor trailers follow. See [`HttpStream::take_request_body`].
    pub fn request_body(&mut self, chunk: Bytes, end_of_stream: bool) -> Progress {
        self.body(Direction::Request, chunk, end_of_stream)
    }

    /// Shows [`Exchange::request_trailers`], which is set.
    pub fn request_trailers(&mut self) -> Progress {
        self.trailers(Direction::Request)
    }

    /// Shows [`Exchange::response_headers`], which is set: an upstream's, or those of a local response.
    pub fn response_headers(&mut self, end_of_stream: bool) -> Progress {
        self.headers(Direction::Response, end_of_stream)
    }

    /// Shows body bytes; `end_of_stream` when neither more nor trailers follow. See [`HttpStream::take_response_body`].
    pub fn response_body(&mut self, chunk: Bytes, end_of_stream: bool) -> Progress {
        self.body(Direction::Response, chunk, end_of_stream)
    }

    /// Shows [`Exchange::response_trailers`], which is set.
    pub fn response_trailers(&mut self) -> Progress {
        self.trailers(Direction::Response)
    }

    /// Request body bytes that have passed the last filter and were not taken yet.
    pub fn take_request_body(&mut self) -> Bytes {
        self.request.out.take()
    }

    /// Response body bytes that have passed the last filter and were not taken yet.
    pub fn take_response_body(&mut self) -> Bytes {
        self.response.out.take()
    }

    /// The body of the local response.
    pub fn take_local_body(&mut self) -> Bytes {
        std::mem::take(&mut self.local_body)
    }

    /// Goes on where a filter paused, if it wants to. After [`Embedder::wake`](crate::Embedder::wake), for the request, then for the
    /// response, also when nothing is paused: a filter may have answered or closed the exchange from a timer. `Continue` means
    /// that this direction waits for nothing (it may not have begun, or its part may be over). `Respond` is told by whichever direction comes
    /// upon the answer, and by the response until that answer's headers are shown: whoever waits there waits for the upstream's no more.
    /// `Reset` is told whenever it is asked.
    pub fn resume(&mut self, direction: Direction) -> Progress {
        if self.end == Some(Progress::Respond) && direction == Direction::Request {
            return Progress::Continue;
        }
        if let Some(end) = self.ended(direction) {
            return end;
        }
        if let Some(end) = self.pending(direction) {
            return end;
        }
        match self.try_resume(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    /// Whether a filter holds the headers alone (see [`PluginSpec::allow_on_headers_stop_iteration`](crate::PluginSpec)): the body, and trailers, are
    /// to be handed in though the headers have not passed. They may pass with any of that, as [`HttpStream::has_passed_headers`] tells, whatever
    /// the progress; only then they and what has passed of the body are sent on.
    pub fn wants_body(&self, direction: Direction) -> bool {
        self.flow_ref(direction).stop == Some(Stop::Alone)
    }

    /// Whether the headers have passed the last filter.
    pub fn has_passed_headers(&self, direction: Direction) -> bool {
        self.flow_ref(direction).headers_passed
    }

    /// Whether a filter changed the request's `:path` or `:authority`, or asked for the route to be chosen anew (`clear_route_cache`), since this was
    /// last asked. Of use until the request is sent on: its headers may lead elsewhere now.
    pub fn take_route_stale(&self) -> bool {
        self.cell.route_stale.replace(false)
    }

    /// Ends the exchange: fill [`Exchange::info`] first. Runs `proxy_on_log` in all filters, then `proxy_on_done` and `proxy_on_delete` in
    /// each, as Envoy does. As there, a filter that was never entered logs as well.
    pub fn finish(mut self) {
        self.end_filters();
    }

    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }

    fn flow_ref(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }

    /// The filter at a step of this direction.
    fn filter(&self, direction: Direction, step: usize) -> usize {
        match direction {
            Direction::Request => step,
            Direction::Response => (self.filters.plugins.len() - 1).saturating_sub(step),
        }
    }

    /// The least of the filters' bounds: what may come in while one of them holds the headers.
    fn body_bound(&self) -> usize {
        self.filters
            .plugins
            .iter()
            .map(|filter| filter.plugin.spec().limits.body_bytes)
            .min()
            .unwrap_or(usize::MAX)
    }
}

impl Drop for HttpStream {
    fn drop(&mut self) {
        self.end_filters();
    }
}
