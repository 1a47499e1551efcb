//! The filter chain, and one exchange on its way through.
//!
//! Requests pass the filters in order, responses in reverse. A filter that pauses holds what it was shown; a filter that answers ends
//! the request's way at once, and its answer passes back through the filters that the request had entered. What no filter of the
//! chain reads costs nothing.
//!
//! Invariants: a local response is final; an exchange whose VM broke is refused (503, or a reset once headers have gone), whatever the
//! failure policy; while a filter pauses it holds at most [`Limits::body_bytes`](crate::Limits::body_bytes).

use std::{
    cell::{Ref, RefMut},
    rc::Rc,
};

use bytes::Bytes;

use crate::{
    abi::{Action, Callback, Callbacks},
    body::Body,
    context::StreamContext,
    embedder::StreamToken,
    exchange::{Direction, Exchange},
    local_response::LocalResponse,
    plugin::Plugin,
    spec::FailurePolicy,
    stream::{Asked, FilterCell, Open, StreamCell},
    vm::Vm,
};

/// The plugins of a route, in order.
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
}

impl Chain {
    /// A chain of these plugins, the first nearest to the client.
    pub fn new(plugins: Vec<Rc<Plugin>>) -> Self {
        let mut any = Callbacks::default();
        let plugins: Vec<_> = plugins
            .into_iter()
            .map(|plugin| Filter { callbacks: plugin.callbacks(), has_streams: plugin.has_streams(), plugin })
            .collect();
        for callback in Callback::ALL {
            if plugins.iter().any(|filter| filter.callbacks.contains(*callback)) {
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
    /// A filter holds this phase. In a headers phase: do not read the body, wait for [`Embedder::wake`](crate::Embedder::wake). In a body
    /// phase: go on feeding; past the bound it becomes `Respond` (413) or `Reset`.
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
    paused: Option<Part>,
    /// Filters that hold body bytes.
    held: usize,
    /// Steps below it do not see the body: it is of a response made behind them.
    body_from: usize,
    /// What came while headers were held, and whether it was the end.
    early: Body,
    early_end: bool,
    early_trailers: bool,
    /// What has passed the last filter.
    out: Body,
    /// The response was made here.
    is_local: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Headers,
    Trailers,
}

/// What one filter did with one phase.
enum Next {
    Continue,
    Pause,
    PauseAndDrop,
    End(Progress),
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

    /// Goes on where a filter paused, if it wants to. After [`Embedder::wake`](crate::Embedder::wake), for both directions, also when
    /// nothing is paused: a filter may have answered from a timer.
    pub fn resume(&mut self, direction: Direction) -> Progress {
        if let Some(end) = self.ended(direction).or_else(|| self.pending(direction)) {
            return end;
        }
        match self.try_resume(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    /// Ends the exchange: fill [`Exchange::info`] first. Runs `proxy_on_log` in all filters, then `proxy_on_done` and `proxy_on_delete` in
    /// each, as Envoy does. As there, a filter that was never entered logs as well.
    pub fn finish(mut self) {
        self.end_filters();
    }

    // --- phases ---------------------------------------------------------------------------------------------------------

    fn headers(&mut self, direction: Direction, end_of_stream: bool) -> Progress {
        if let Some(end) = self.ended(direction) {
            return end;
        }
        let flow = self.flow(direction);
        flow.headers_end = end_of_stream;
        match self.advance_headers(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    fn body(&mut self, direction: Direction, chunk: Bytes, end_of_stream: bool) -> Progress {
        if let Some(end) = self.ended(direction) {
            return end;
        }
        if self.flow(direction).paused == Some(Part::Headers) {
            let bound = self.body_bound();
            let flow = self.flow(direction);
            flow.early.push(chunk);
            flow.early_end |= end_of_stream;
            let is_over = flow.early.len() > bound;
            return if is_over { self.overflow(direction, 0) } else { Progress::Pause };
        }
        let from = self.flow(direction).body_from;
        match self.feed(direction, from, chunk, end_of_stream) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    fn trailers(&mut self, direction: Direction) -> Progress {
        if let Some(end) = self.ended(direction) {
            return end;
        }
        let flow = self.flow(direction);
        if flow.paused == Some(Part::Headers) {
            flow.early_trailers = true;
            return Progress::Pause;
        }
        flow.trailers_step = flow.trailers_step.max(flow.body_from);
        match self.advance_trailers(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    fn advance_headers(&mut self, direction: Direction) -> Result<(), Progress> {
        let (callback, open) = match direction {
            Direction::Request => (Callback::RequestHeaders, Open::REQUEST_HEADERS),
            Direction::Response => (Callback::ResponseHeaders, Open::RESPONSE_HEADERS),
        };
        let must_visit = direction == Direction::Request || self.filters.any.contains(callback);
        while must_visit && self.flow(direction).headers_step < self.filters.plugins.len() {
            let step = self.flow(direction).headers_step;
            let filter = self.filter(direction, step);
            if direction == Direction::Request {
                self.enter(filter)?;
            }
            let end_of_stream = self.flow(direction).headers_end;
            match self.call(direction, filter, callback, open, end_of_stream) {
                Next::Continue => self.flow(direction).headers_step = step + 1,
                Next::Pause | Next::PauseAndDrop => {
                    self.flow(direction).paused = Some(Part::Headers);
                    return Ok(());
                }
                Next::End(end) => return Err(end),
            }
        }
        self.flow(direction).headers_passed = true;
        Ok(())
    }

    /// Makes a filter's context as its turn comes.
    fn enter(&mut self, index: usize) -> Result<(), Progress> {
        let Some(filter) = self.filters.plugins.get(index) else { return Ok(()) };
        if !filter.has_streams || self.vms.get(index).is_some_and(Option::is_some) {
            return Ok(());
        }
        let stats = filter.plugin.stats_ref();
        match filter.plugin.vm() {
            Some(vm) => {
                let context = StreamContext { stream: Rc::clone(&self.cell), filter: index };
                let created = vm.create_context(&context);
                if let Some(place) = self.vms.get_mut(index) {
                    *place = Some(vm);
                }
                if created.is_err() {
                    self.mark_broken(index);
                    return Err(self.refuse(Direction::Request, index));
                }
                Ok(())
            }
            None if filter.plugin.spec().failure_policy == FailurePolicy::Open => {
                stats.count_passed_by();
                Ok(())
            }
            None => Err(self.refuse(Direction::Request, index)),
        }
    }

    /// Sends body bytes through the filters from `from` on.
    fn feed(&mut self, direction: Direction, from: usize, chunk: Bytes, end_of_stream: bool) -> Result<(), Progress> {
        let callback = match direction {
            Direction::Request => Callback::RequestBody,
            Direction::Response => Callback::ResponseBody,
        };
        if !self.filters.any.contains(callback) {
            self.flow(direction).out.push(chunk);
            return Ok(());
        }
        let mut chunk = chunk;
        for step in from..self.filters.plugins.len() {
            let index = self.filter(direction, step);
            if !self.reads(index, callback) {
                continue;
            }
            let Some(filter) = self.filters.plugins.get(index) else { continue };
            let bound = filter.plugin.spec().limits.body_bytes;
            let Some(cell) = self.cell.filters.get(index) else { continue };
            let len = {
                let mut body = cell.body(direction).borrow_mut();
                body.push(chunk);
                body.len()
            };
            if cell.held(direction).get().is_some() && len > bound {
                return Err(self.overflow(direction, index));
            }
            let open = self.body_open(direction, end_of_stream);
            let next = self.call(direction, index, callback, open, end_of_stream);
            let Some(cell) = self.cell.filters.get(index) else { return Ok(()) };
            match next {
                Next::Continue => {
                    chunk = cell.body(direction).borrow_mut().take();
                    if cell.held(direction).take().is_some() {
                        self.flow(direction).held -= 1;
                    }
                }
                Next::Pause | Next::PauseAndDrop => {
                    if matches!(next, Next::PauseAndDrop) {
                        cell.body(direction).borrow_mut().take();
                    }
                    let is_over = cell.body(direction).borrow().len() > bound;
                    if cell.held(direction).replace(Some(end_of_stream)).is_none() {
                        self.flow(direction).held += 1;
                    }
                    return if is_over { Err(self.overflow(direction, index)) } else { Ok(()) };
                }
                Next::End(end) => return Err(end),
            }
        }
        self.flow(direction).out.push(chunk);
        Ok(())
    }

    /// What a body callback may touch: at the end of a body without trailers, it may make some.
    fn body_open(&self, direction: Direction, end_of_stream: bool) -> Open {
        let exchange = self.cell.exchange.borrow();
        match direction {
            Direction::Request if end_of_stream && exchange.request_trailers.is_none() => Open::REQUEST_BODY.with(Open::NEW_REQUEST_TRAILERS),
            Direction::Request => Open::REQUEST_BODY,
            Direction::Response if end_of_stream && exchange.response_trailers.is_none() => {
                Open::RESPONSE_BODY.with(Open::NEW_RESPONSE_TRAILERS)
            }
            Direction::Response => Open::RESPONSE_BODY,
        }
    }

    fn advance_trailers(&mut self, direction: Direction) -> Result<(), Progress> {
        let (callback, open) = match direction {
            Direction::Request => (Callback::RequestTrailers, Open::REQUEST_TRAILERS),
            Direction::Response => (Callback::ResponseTrailers, Open::RESPONSE_TRAILERS),
        };
        while self.flow(direction).trailers_step < self.filters.plugins.len() {
            let step = self.flow(direction).trailers_step;
            let index = self.filter(direction, step);
            if self.reads(index, callback) {
                match self.call(direction, index, callback, open, true) {
                    Next::Continue => {}
                    Next::Pause | Next::PauseAndDrop => {
                        self.flow(direction).paused = Some(Part::Trailers);
                        return Ok(());
                    }
                    Next::End(end) => return Err(end),
                }
            }
            // Trailers that pass a filter take with them what it held of the body.
            self.release(direction, step)?;
            self.flow(direction).trailers_step = step + 1;
        }
        self.flow(direction).trailers_passed = true;
        Ok(())
    }

    /// Sends on what a filter holds of a body.
    fn release(&mut self, direction: Direction, step: usize) -> Result<(), Progress> {
        let index = self.filter(direction, step);
        let Some(cell) = self.cell.filters.get(index) else { return Ok(()) };
        let Some(end_of_stream) = cell.held(direction).take() else { return Ok(()) };
        let open = cell.open.get().without(Open::REQUEST_BODY.with(Open::NEW_REQUEST_TRAILERS));
        cell.open.set(match direction {
            Direction::Request => open,
            Direction::Response => cell.open.get().without(Open::RESPONSE_BODY.with(Open::NEW_RESPONSE_TRAILERS)),
        });
        let bytes = cell.body(direction).borrow_mut().take();
        self.flow(direction).held -= 1;
        self.feed(direction, step + 1, bytes, end_of_stream)
    }

    // --- going on after a pause -----------------------------------------------------------------------------------------

    fn try_resume(&mut self, direction: Direction) -> Result<(), Progress> {
        match self.flow(direction).paused {
            Some(Part::Headers) => {
                let step = self.flow(direction).headers_step;
                if !self.wants_on(direction, step) {
                    return Ok(());
                }
                self.close(direction, step, Open::REQUEST_HEADERS.with(Open::RESPONSE_HEADERS));
                let flow = self.flow(direction);
                flow.paused = None;
                flow.headers_step = step + 1;
                self.advance_headers(direction)?;
                return self.feed_early(direction);
            }
            Some(Part::Trailers) => {
                let step = self.flow(direction).trailers_step;
                if self.wants_on(direction, step) {
                    self.close(direction, step, Open::REQUEST_TRAILERS.with(Open::RESPONSE_TRAILERS));
                    self.flow(direction).paused = None;
                    self.release(direction, step)?;
                    self.flow(direction).trailers_step = step + 1;
                    self.advance_trailers(direction)?;
                }
            }
            None => {}
        }
        // What is nearer to the way out came earlier.
        for step in (0..self.filters.plugins.len()).rev() {
            let index = self.filter(direction, step);
            let holds = self.cell.filters.get(index).is_some_and(|cell| cell.held(direction).get().is_some());
            if holds && self.wants_on(direction, step) {
                self.release(direction, step)?;
            }
        }
        Ok(())
    }

    /// Body and trailers that came while headers were held.
    fn feed_early(&mut self, direction: Direction) -> Result<(), Progress> {
        let flow = self.flow(direction);
        if flow.paused.is_some() {
            return Ok(());
        }
        let (bytes, end, trailers, from) = (flow.early.take(), flow.early_end, flow.early_trailers, flow.body_from);
        flow.early_end = false;
        flow.early_trailers = false;
        if !bytes.is_empty() || end {
            self.feed(direction, from, bytes, end)?;
        }
        if trailers {
            self.advance_trailers(direction)?;
        }
        Ok(())
    }

    /// Whether the filter at `step` asked to go on; the wish is spent.
    fn wants_on(&mut self, direction: Direction, step: usize) -> bool {
        let index = self.filter(direction, step);
        let Some(cell) = self.cell.filters.get(index) else { return false };
        let asked = cell.asked.get();
        cell.asked.set(asked.with_resume(direction, false));
        asked.resume(direction)
    }

    fn close(&mut self, direction: Direction, step: usize, parts: Open) {
        let index = self.filter(direction, step);
        if let Some(cell) = self.cell.filters.get(index) {
            cell.open.set(cell.open.get().without(parts));
        }
    }

    /// What filters asked for outside of their own phases: an answer, a reset; or a VM that broke while it held the exchange.
    fn pending(&mut self, direction: Direction) -> Option<Progress> {
        // Which direction was asked for says nothing about how far the exchange is.
        let at = if self.is_responding() { Direction::Response } else { Direction::Request };
        for index in 0..self.cell.filters.len() {
            let Some(cell) = self.cell.filters.get(index) else { continue };
            let local = cell.local.borrow_mut().take();
            if let Some(local) = local {
                return Some(self.answered(at, index, local));
            }
            if cell.asked.get().close {
                return Some(self.finished_with(Progress::Reset));
            }
            if cell.broken.get() && self.is_held_by(direction, index) {
                return Some(self.refuse(direction, index));
            }
        }
        None
    }

    fn is_held_by(&mut self, direction: Direction, index: usize) -> bool {
        let step = match self.flow(direction).paused {
            Some(Part::Headers) => Some(self.flow(direction).headers_step),
            Some(Part::Trailers) => Some(self.flow(direction).trailers_step),
            None => None,
        };
        step.is_some_and(|step| self.filter(direction, step) == index)
            || self.cell.filters.get(index).is_some_and(|cell| cell.held(direction).get().is_some())
    }

    // --- one filter, one phase ------------------------------------------------------------------------------------------

    fn call(&mut self, direction: Direction, index: usize, callback: Callback, open: Open, end_of_stream: bool) -> Next {
        if !self.reads(index, callback) {
            return Next::Continue;
        }
        let Some((cell, vm)) = self.cell.filters.get(index).zip(self.vms.get(index).and_then(Option::as_ref)) else {
            return Next::Continue;
        };
        if cell.broken.get() {
            return self.past_broken(direction, index);
        }
        let Some(size) = self.size(callback, cell) else { return Next::Continue };
        cell.open.set(cell.open.get().with(open));
        cell.asked.set(cell.asked.get().with_resume(direction, false));
        let context = StreamContext { stream: Rc::clone(&self.cell), filter: index };
        let result = vm.phase(callback, &context, size, end_of_stream);
        let Ok(action) = result else {
            self.mark_broken(index);
            return Next::End(self.refuse(direction, index));
        };
        let local = cell.local.borrow_mut().take();
        if let Some(local) = local {
            return Next::End(self.answered(direction, index, local));
        }
        let asked = cell.asked.get();
        if asked.close {
            return Next::End(self.finished_with(Progress::Reset));
        }
        if action == Action::Continue || asked.resume(direction) {
            cell.asked.set(asked.with_resume(direction, false));
            cell.open.set(cell.open.get().without(open));
            return Next::Continue;
        }
        if action == Action::PauseAndDrop { Next::PauseAndDrop } else { Next::Pause }
    }

    /// The number a callback is told: headers, bytes. `None` where there is nothing to show.
    fn size(&self, callback: Callback, cell: &FilterCell) -> Option<usize> {
        let exchange = self.cell.exchange.borrow();
        match callback {
            Callback::RequestHeaders => Some(exchange.request_headers.len()),
            Callback::RequestTrailers => exchange.request_trailers.as_ref().map(|map| map.len()),
            Callback::ResponseHeaders => exchange.response_headers.as_ref().map(|map| map.len()),
            Callback::ResponseTrailers => exchange.response_trailers.as_ref().map(|map| map.len()),
            Callback::RequestBody => Some(cell.body(Direction::Request).borrow().len()),
            Callback::ResponseBody => Some(cell.body(Direction::Response).borrow().len()),
            _ => None,
        }
    }

    /// Whether a filter was entered and has this callback.
    fn reads(&self, index: usize, callback: Callback) -> bool {
        self.filters.plugins.get(index).is_some_and(|filter| filter.callbacks.contains(callback))
            && self.vms.get(index).is_some_and(Option::is_some)
    }

    /// A filter whose VM another exchange broke. A local response passes it; an upstream's answer only where the operator wrote `open`.
    fn past_broken(&mut self, direction: Direction, index: usize) -> Next {
        let policy = self.filters.plugins.get(index).map(|filter| filter.plugin.spec().failure_policy);
        let passes = direction == Direction::Response && (self.response.is_local || policy == Some(FailurePolicy::Open));
        if passes { Next::Continue } else { Next::End(self.refuse(direction, index)) }
    }

    // --- ends -----------------------------------------------------------------------------------------------------------

    fn mark_broken(&self, index: usize) {
        if let Some(cell) = self.cell.filters.get(index) {
            cell.broken.set(true);
        }
    }

    /// A filter answered.
    fn answered(&mut self, direction: Direction, index: usize, local: LocalResponse) -> Progress {
        if let Some(filter) = self.filters.plugins.get(index) {
            filter.plugin.stats_ref().count_local_response();
        }
        self.respond(direction, local)
    }

    /// A filter has no VM, or broke it.
    fn refuse(&mut self, direction: Direction, index: usize) -> Progress {
        let Some(filter) = self.filters.plugins.get(index) else { return self.finished_with(Progress::Reset) };
        filter.plugin.stats_ref().count_refused();
        let local = LocalResponse::problem(503, "Service Unavailable", &self.cell.exchange.borrow(), filter.plugin.embedder());
        self.respond(direction, local)
    }

    /// A body is larger than a pausing filter may hold.
    fn overflow(&mut self, direction: Direction, index: usize) -> Progress {
        let Some(filter) = self.filters.plugins.get(index) else { return self.finished_with(Progress::Reset) };
        let (status, title) = match direction {
            Direction::Request => (413, "Content Too Large"),
            Direction::Response => (500, "Internal Server Error"),
        };
        let local = LocalResponse::problem(status, title, &self.cell.exchange.borrow(), filter.plugin.embedder());
        self.respond(direction, local)
    }

    /// Puts a local response in place, where that is still possible. From a response phase it replaces the upstream's answer and goes on
    /// behind the filter at work, so that none sees the headers twice and none answers its own answer.
    fn respond(&mut self, direction: Direction, local: LocalResponse) -> Progress {
        if self.response.headers_passed {
            return self.finished_with(Progress::Reset);
        }
        self.local_body = local.apply(&mut self.cell.exchange.borrow_mut());
        let from = if direction == Direction::Response || self.is_responding() { self.response.headers_step + 1 } else { 0 };
        self.response = Flow { headers_step: from, body_from: from, is_local: true, ..Flow::default() };
        for cell in &self.cell.filters {
            cell.body(Direction::Request).borrow_mut().take();
            cell.body(Direction::Response).borrow_mut().take();
            cell.held(Direction::Request).set(None);
            cell.held(Direction::Response).set(None);
            cell.asked.set(Asked::default());
        }
        self.request = Flow::default();
        self.end = Some(Progress::Respond);
        Progress::Respond
    }

    /// Whether the response's headers are on their way through the filters.
    fn is_responding(&self) -> bool {
        self.response.headers_step > 0 || self.response.paused.is_some()
    }

    fn finished_with(&mut self, end: Progress) -> Progress {
        self.end = Some(end);
        end
    }

    /// Nothing passes any more after a reset, nor any request after a response was made here.
    fn ended(&self, direction: Direction) -> Option<Progress> {
        match self.end {
            Some(Progress::Respond) if direction == Direction::Response => None,
            end => end,
        }
    }

    fn standing(&mut self, direction: Direction) -> Progress {
        let flow = self.flow(direction);
        if flow.paused.is_some() || flow.held > 0 { Progress::Pause } else { Progress::Continue }
    }

    fn end_filters(&mut self) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        for (index, filter) in self.filters.plugins.iter().enumerate() {
            if !filter.callbacks.contains(Callback::Log) {
                continue;
            }
            let context = StreamContext { stream: Rc::clone(&self.cell), filter: index };
            let Some((cell, place)) = self.cell.filters.get(index).zip(self.vms.get_mut(index)) else { continue };
            if place.is_none()
                && let Some(vm) = filter.plugin.vm()
                && vm.create_context(&context).is_ok()
            {
                *place = Some(vm);
            }
            if let Some(vm) = place
                && !cell.broken.get()
            {
                cell.open.set(Open::LOG);
                // A VM that breaks here takes only itself along: this exchange is over.
                let _ = vm.log(&context);
            }
        }
        for (index, filter) in self.filters.plugins.iter().enumerate() {
            let Some((cell, Some(vm))) = self.cell.filters.get(index).zip(self.vms.get_mut(index).map(Option::take)) else { continue };
            if !cell.broken.get() {
                cell.open.set(Open::LOG);
                let context = StreamContext { stream: Rc::clone(&self.cell), filter: index };
                let _ = vm.finish(&context, filter.callbacks);
            }
        }
    }

    // --- places ---------------------------------------------------------------------------------------------------------

    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
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
        self.filters.plugins.iter().map(|filter| filter.plugin.spec().limits.body_bytes).min().unwrap_or(usize::MAX)
    }
}

impl Drop for HttpStream {
    fn drop(&mut self) {
        self.end_filters();
    }
}
