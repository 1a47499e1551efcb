//! One TCP connection on its way through a chain, as Envoy's network filters see it.
//!
//! What came from the client and was not let pass lies in one buffer: each time more comes, every filter from the first on is shown all
//! of it, until one of them pauses. A filter's context is made when its turn first comes, so a pause at the first filter keeps the
//! later ones, and the connection to the upstream, waiting. Bytes from the upstream pass in reverse and cannot be resumed: the next
//! bytes show the filter all again.
//!
//! Invariants: the connection that breaks a VM is closed, whatever the failure policy, and those that it leaves without one where that is
//! `closed`; each filter that was entered is told of the close of
//! the upstream at most once, and of that of the client exactly once; then it is done, logs, and is deleted, in Envoy's order for TCP.

use std::{
    cell::{Ref, RefMut},
    fmt,
    rc::Rc,
};

use bytes::Bytes;

use super::{Chain, Filters};
use crate::{
    abi::{Action, Callback},
    body::Body,
    context::StreamContext,
    embedder::StreamToken,
    exchange::{Direction, Exchange, StreamInfo},
    fields::FieldList,
    plugin::NoVm,
    spec::FailurePolicy,
    stream::{Open, StreamCell},
    vm::Vm,
};

/// What became of what was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpProgress {
    /// All of it has passed the last filter; see [`TcpStream::take_downstream`] and [`TcpStream::take_upstream`].
    Continue,
    /// A filter holds it.
    Pause,
    /// Send what has passed, then close the connection: a filter closed it, or broke.
    Close,
}

/// Who closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Peer {
    /// Not known; what Envoy says of every upstream.
    Unknown = 0,
    /// This side.
    Local = 1,
    /// The other side.
    Remote = 2,
}

/// One client connection on its way through a chain. Dropping it ends it, as [`TcpStream::close`] by this side does.
pub struct TcpStream {
    filters: Rc<Filters>,
    cell: Rc<StreamCell>,
    /// By filter; `None` where it was not entered, or is passed by.
    vms: Vec<Option<Rc<Vm>>>,
    /// Filters below it have seen the connection.
    entered: usize,
    is_open: bool,
    downstream: Lane,
    upstream: Lane,
    /// Filters that were told that the upstream is closed.
    is_upstream_closed: Vec<bool>,
    is_over: bool,
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("token", &self.cell.token)
            .field("is_open", &self.is_open)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

/// One direction.
#[derive(Default)]
struct Lane {
    /// The filter that holds the bytes; `None` where none does.
    held_by: Option<usize>,
    /// Bytes before a filter that has not begun with them.
    waiting: Body,
    /// The sender is done.
    is_ended: bool,
    /// And its end has passed.
    is_end_passed: bool,
    out: Body,
}

/// Why a filter's turn ended the walk.
enum Stop {
    Paused,
    Closed,
}

impl TcpStream {
    /// A connection about to enter `chain`. Of `info`, only what there is without HTTP counts.
    pub fn new(chain: &Chain, info: StreamInfo, token: StreamToken) -> Self {
        let filters = Rc::clone(&chain.0);
        let count = filters.plugins.len();
        let exchange = Exchange::new(Box::new(FieldList::new()), info);
        Self {
            cell: Rc::new(StreamCell::of_tcp(exchange, token, count)),
            vms: vec![None; count],
            filters,
            entered: 0,
            is_open: false,
            downstream: Lane::default(),
            upstream: Lane::default(),
            is_upstream_closed: vec![false; count],
            is_over: false,
        }
    }

    /// The embedder's name for it.
    pub fn token(&self) -> StreamToken {
        self.cell.token
    }

    /// Facts, for properties. Not to be held across another call on a stream or a plugin, nor across an `await`.
    pub fn info(&self) -> Ref<'_, StreamInfo> {
        Ref::map(self.cell.exchange.borrow(), |exchange| &exchange.info)
    }

    /// The same, to be changed.
    pub fn info_mut(&mut self) -> RefMut<'_, StreamInfo> {
        RefMut::map(self.cell.exchange.borrow_mut(), |exchange| {
            &mut exchange.info
        })
    }

    /// The connection was accepted.
    pub fn new_connection(&mut self) -> TcpProgress {
        self.run_downstream(0)
    }

    /// Bytes came from the client; `end_of_stream` when no more will.
    pub fn downstream_data(&mut self, bytes: Bytes, end_of_stream: bool) -> TcpProgress {
        let mut body = self.gather(Direction::Request);
        body.push(bytes);
        self.downstream.waiting = body;
        self.downstream.is_ended |= end_of_stream;
        self.run_downstream(0)
    }

    /// Bytes came from the upstream; `end_of_stream` when no more will.
    pub fn upstream_data(&mut self, bytes: Bytes, end_of_stream: bool) -> TcpProgress {
        let mut body = self.gather(Direction::Response);
        body.push(bytes);
        self.upstream.waiting = body;
        self.upstream.is_ended |= end_of_stream;
        self.run_upstream()
    }

    /// Goes on where a filter paused, if it wants to, and closes where one asked for it. After [`Embedder::wake`](crate::Embedder::wake).
    pub fn resume(&mut self) -> TcpProgress {
        let mut progress = TcpProgress::Continue;
        for index in 0..self.entered {
            let Some(cell) = self.cell.filters.get(index) else {
                continue;
            };
            let asked = cell.asked.get();
            if asked.close || (cell.broken.get() && self.is_refusing(index)) {
                return TcpProgress::Close;
            }
            if asked.resume(Direction::Request) {
                cell.asked.set(asked.with_resume(Direction::Request, false));
                // Only what it holds itself: Envoy would hand on what an earlier filter holds, too.
                let is_holder = match self.downstream.held_by {
                    Some(holder) => holder == index,
                    None => !self.is_open && index + 1 == self.entered,
                };
                if !is_holder {
                    continue;
                }
                cell.open
                    .set(cell.open.get().without(Open::DOWNSTREAM_DATA));
                self.downstream.waiting = self.gather(Direction::Request);
                progress = self.run_downstream(index + 1);
                if progress == TcpProgress::Close {
                    return progress;
                }
            }
        }
        progress
    }

    /// Whether all filters have let the connection pass: now the upstream may be called.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether more may be handed in: no filter holds what its bound allows.
    pub fn has_room(&self, direction: Direction) -> bool {
        let lane = self.lane(direction);
        let held = lane.held_by.and_then(|index| self.cell.filters.get(index));
        let held = held.map_or(0, |cell| cell.body(direction).borrow().len());
        let bounds = self.filters.plugins.iter();
        let bound = bounds
            .map(|filter| filter.plugin.spec().limits.body_bytes)
            .min();
        bound.is_none_or(|bound| held.saturating_add(lane.waiting.len()) < bound.max(1))
    }

    /// Bytes for the upstream, and whether they are the last.
    pub fn take_downstream(&mut self) -> (Bytes, bool) {
        let lane = &mut self.downstream;
        (lane.out.take(), lane.is_end_passed)
    }

    /// Bytes for the client, and whether they are the last.
    pub fn take_upstream(&mut self) -> (Bytes, bool) {
        let lane = &mut self.upstream;
        (lane.out.take(), lane.is_end_passed)
    }

    /// The connection to the client is closed. Fill [`TcpStream::info_mut`] first.
    pub fn close(mut self, by: Peer) {
        self.end(by);
    }

    /// One pass over the filters from `from` on with what waits.
    fn run_downstream(&mut self, from: usize) -> TcpProgress {
        for index in from..self.filters.plugins.len() {
            let turn = self.meet(index).and_then(|()| {
                let lane = &self.downstream;
                let has_news = lane.waiting.len() > 0 || (lane.is_ended && !lane.is_end_passed);
                if has_news {
                    self.show(Direction::Request, index)
                } else {
                    Ok(())
                }
            });
            match turn {
                Ok(()) => {}
                Err(Stop::Paused) => return TcpProgress::Pause,
                Err(Stop::Closed) => return TcpProgress::Close,
            }
        }
        self.is_open = true;
        self.pass(Direction::Request);
        TcpProgress::Continue
    }

    fn run_upstream(&mut self) -> TcpProgress {
        for index in (0..self.entered).rev() {
            let shown = self.show(Direction::Response, index);
            if self.upstream.is_ended && !matches!(shown, Err(Stop::Closed)) {
                // As in Envoy, which learns of it from the end of the bytes.
                if self.tell_upstream_closed(index).is_err() {
                    return TcpProgress::Close;
                }
            }
            match shown {
                Ok(()) => {}
                Err(Stop::Paused) => return TcpProgress::Pause,
                Err(Stop::Closed) => return TcpProgress::Close,
            }
        }
        self.pass(Direction::Response);
        TcpProgress::Continue
    }

    /// Makes a filter's context when its turn first comes, and shows it the connection.
    fn meet(&mut self, index: usize) -> Result<(), Stop> {
        if index < self.entered {
            return Ok(());
        }
        self.entered = index + 1;
        let Some(filter) = self.filters.plugins.get(index) else {
            return Ok(());
        };
        if !filter.has_connections {
            return Ok(());
        }
        let stats = filter.plugin.stats_ref();
        let vm = match filter.plugin.vm() {
            Ok(vm) => vm,
            Err(NoVm::Down) if filter.plugin.spec().failure_policy == FailurePolicy::Open => {
                stats.count_passed_by();
                return Ok(());
            }
            Err(NoVm::Down | NoVm::Full) => {
                stats.count_refused();
                return Err(Stop::Closed);
            }
        };
        let context = self.context(index);
        let created = vm.create_context(&context);
        let shown = created.and_then(|()| vm.new_connection(&context));
        if let Some(place) = self.vms.get_mut(index) {
            *place = Some(vm);
        }
        match shown {
            Ok(Action::Continue) => self.asked(index).map(|_| ()),
            Ok(_) => match self.asked(index) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Stop::Paused),
                Err(stop) => Err(stop),
            },
            Err(_) => Err(self.broke(index)),
        }
    }

    /// Shows a filter what waits. What it holds lies with it until more comes or it is resumed.
    fn show(&mut self, direction: Direction, index: usize) -> Result<(), Stop> {
        let (callback, open) = match direction {
            Direction::Request => (Callback::DownstreamData, Open::DOWNSTREAM_DATA),
            Direction::Response => (Callback::UpstreamData, Open::UPSTREAM_DATA),
        };
        let Some((filter, Some(vm))) = self
            .filters
            .plugins
            .get(index)
            .zip(self.vms.get(index).map(Option::as_ref))
        else {
            return Ok(());
        };
        let Some(cell) = self.cell.filters.get(index) else {
            return Ok(());
        };
        if cell.broken.get() {
            return if self.is_refusing(index) {
                Err(Stop::Closed)
            } else {
                Ok(())
            };
        }
        if !filter.callbacks.contains(callback) {
            return Ok(());
        }
        let lane = self.lane(direction);
        let is_ended = lane.is_ended;
        let size = lane.waiting.len();
        cell.open.set(cell.open.get().with(open));
        let context = self.context(index);
        let vm = Rc::clone(vm);
        let waiting = std::mem::take(&mut self.lane_mut(direction).waiting);
        self.put(direction, index, waiting);
        let Ok(action) = vm.phase(callback, &context, size, is_ended) else {
            return Err(self.broke(index));
        };
        let asked = self.asked(index)?;
        if action == Action::Continue || (asked && direction == Direction::Request) {
            let body = self.take(direction, index);
            self.lane_mut(direction).waiting = body;
            if let Some(cell) = self.cell.filters.get(index) {
                cell.open.set(cell.open.get().without(open));
            }
            return Ok(());
        }
        self.lane_mut(direction).held_by = Some(index);
        Err(Stop::Paused)
    }

    /// What a filter asked for in its own callback: whether to go on, or the end.
    fn asked(&self, index: usize) -> Result<bool, Stop> {
        let Some(cell) = self.cell.filters.get(index) else {
            return Ok(false);
        };
        let asked = cell.asked.get();
        if asked.close {
            return Err(Stop::Closed);
        }
        cell.asked.set(asked.with_resume(Direction::Request, false));
        Ok(asked.resume(Direction::Request))
    }

    fn tell_upstream_closed(&mut self, index: usize) -> Result<(), Stop> {
        let Some(is_told) = self.is_upstream_closed.get_mut(index) else {
            return Ok(());
        };
        if std::mem::replace(is_told, true) {
            return Ok(());
        }
        let callback = Callback::UpstreamConnectionClose;
        let Some((filter, Some(vm))) = self
            .filters
            .plugins
            .get(index)
            .zip(self.vms.get(index).map(Option::as_ref))
        else {
            return Ok(());
        };
        let is_broken = self
            .cell
            .filters
            .get(index)
            .is_some_and(|cell| cell.broken.get());
        if is_broken || !filter.callbacks.contains(callback) {
            return Ok(());
        }
        let told = vm.connection_closed(callback, &self.context(index), Peer::Unknown as u32);
        match told {
            Ok(()) => self.asked(index).map(|_| ()),
            Err(_) => Err(self.broke(index)),
        }
    }

    /// All that waits has passed the last filter.
    fn pass(&mut self, direction: Direction) {
        let lane = self.lane_mut(direction);
        let bytes = lane.waiting.take();
        lane.out.push(bytes);
        lane.is_end_passed = lane.is_ended;
    }

    /// What waits, and what a filter held of it before.
    fn gather(&mut self, direction: Direction) -> Body {
        let held_by = self.lane_mut(direction).held_by.take();
        let waiting = std::mem::take(&mut self.lane_mut(direction).waiting);
        match held_by {
            Some(index) => {
                let mut body = self.take(direction, index);
                body.append(waiting);
                body
            }
            None => waiting,
        }
    }

    fn put(&self, direction: Direction, index: usize, body: Body) {
        if let Some(cell) = self.cell.filters.get(index) {
            *cell.body(direction).borrow_mut() = body;
        }
    }

    fn take(&self, direction: Direction, index: usize) -> Body {
        self.cell
            .filters
            .get(index)
            .map(|cell| std::mem::take(&mut *cell.body(direction).borrow_mut()))
            .unwrap_or_default()
    }

    fn context(&self, index: usize) -> StreamContext {
        StreamContext {
            stream: Rc::clone(&self.cell),
            filter: index,
        }
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Request => &self.downstream,
            Direction::Response => &self.upstream,
        }
    }

    fn lane_mut(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Request => &mut self.downstream,
            Direction::Response => &mut self.upstream,
        }
    }

    /// This connection broke a filter's VM.
    fn broke(&self, index: usize) -> Stop {
        if let Some(cell) = self.cell.filters.get(index) {
            cell.broken.set(true);
        }
        if let Some(filter) = self.filters.plugins.get(index) {
            filter.plugin.stats_ref().count_refused();
        }
        Stop::Closed
    }

    /// Whether a filter whose VM another connection broke refuses this one.
    fn is_refusing(&self, index: usize) -> bool {
        let Some(filter) = self.filters.plugins.get(index) else {
            return false;
        };
        let is_closed = filter.plugin.spec().failure_policy == FailurePolicy::Closed;
        if is_closed {
            filter.plugin.stats_ref().count_refused();
        }
        is_closed
    }

    fn end(&mut self, by: Peer) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        for (index, filter) in self.filters.plugins.iter().enumerate() {
            let context = StreamContext {
                stream: Rc::clone(&self.cell),
                filter: index,
            };
            let Some((cell, Some(vm))) = self
                .cell
                .filters
                .get(index)
                .zip(self.vms.get_mut(index).map(Option::take))
            else {
                continue;
            };
            if cell.broken.get() {
                continue;
            }
            // A VM that breaks here takes only itself along: this connection is over.
            let callback = Callback::DownstreamConnectionClose;
            if filter.callbacks.contains(callback)
                && vm.connection_closed(callback, &context, by as u32).is_err()
            {
                continue;
            }
            let _ = vm.finish(&context, filter.callbacks);
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.end(Peer::Local);
    }
}
