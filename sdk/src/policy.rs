//! Several controls in one module: [`Policy`], which runs them as a proxy runs a chain of filters, inside one context.
//!
//! Requests pass the controls in the order of the configuration, responses in reverse. A local response ends the
//! request phases; its response phases run through the control that answered and those before it. What holds a request
//! holds it for the controls behind, too.
//!
//! What differs from a chain of modules:
//!
//! - The host's bounds (time, memory) are for all controls together, and a trap takes all of them along.
//! - Ticks come at the shortest period that a control asked for; one with a longer period is called when it is due.
//! - A control that holds a body and then waits for a call ([`Request::hold`](crate::Request::hold)) must be the last
//!   one that reads bodies: hosts do not show a body again that goes on outside of a callback. Else it is refused (500).

mod entries;
mod exchange;
mod measure;
mod part;
mod ticks;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use crate::callbacks::Callbacks;
use crate::configuration::{self, ConfigError};
use crate::control::{Control, Metadata};
use crate::enforcement::Flow;
use crate::error::Error;
use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
use crate::host::{ActiveHost, Host, Level};
use crate::json::Json;
use crate::log;
use crate::metric::Histogram;
use crate::notes::Notes;
use crate::schema;
use crate::scope::{Neighbours, Scope};

pub(crate) use entries::MEASURE;
use entries::{entries, under};
pub use exchange::PolicyExchange;
use exchange::Stop;
use measure::{Measure, timed};
use part::{Direction, Part, Slot};
use ticks::Ticks;

/// The controls that a policy module links: a tuple of up to 16.
pub trait ControlSet: 'static {
    /// One for each, in the order of the tuple.
    const MEMBERS: &'static [Member];
}

/// A control that a policy module links.
#[derive(Debug)]
pub struct Member {
    metadata: Metadata,
    make: fn(Scope) -> Box<dyn Part>,
    schema: fn() -> serde_json::Value,
}

impl Member {
    /// Of a control.
    pub const fn of<C: Control>() -> Self {
        Self {
            metadata: C::METADATA,
            make: |scope| Box::new(Slot::<C>::new(scope)),
            // Else the table would keep the generator in the module that ships.
            schema: || match cfg!(any(feature = "schema", not(target_arch = "wasm32"))) {
                true => schema::of_control::<C>(),
                false => serde_json::Value::Null,
            },
        }
    }
}

/// What the module of a set of controls is called and does; see [`Metadata`].
pub const fn metadata<S: ControlSet>(name: &'static str, version: &'static str) -> Metadata {
    let mut metadata = Metadata::new(name, version, Callbacks::NONE);
    let mut index = 0;
    while index < S::MEMBERS.len() {
        #[expect(
            clippy::indexing_slicing,
            reason = "bounded by the loop, and run by the compiler"
        )]
        let member = &S::MEMBERS[index].metadata;
        metadata.callbacks = metadata.callbacks.and(member.callbacks);
        metadata.authenticates |= member.authenticates;
        metadata.awaits_body |= member.awaits_body;
        index += 1;
    }
    metadata
}

/// Several controls as one filter.
///
/// ```
/// use std::time::SystemTime;
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{Harness, Policy, Step, no_make};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// # struct First;
/// # struct Second;
/// # impl Control for First {
/// #     const METADATA: Metadata = Metadata::new("first", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// # }
/// # impl Control for Second {
/// #     const METADATA: Metadata = Metadata::new("second", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// #     fn on_request_headers(&mut self, _: &mut (), _: &mut Request) -> Result<Decision, Error> {
/// #         Ok(LocalResponse::refuse(403, "second", "Forbidden").into())
/// #     }
/// # }
///
/// // What `policy!(First, Second)` exports, run natively; the second one refuses.
/// let mut harness = Harness::<Policy<(First, Second)>>::new(SystemTime::UNIX_EPOCH);
/// harness.configure(r#"{"controls": [{"control": "first", "configuration": {}}, {"control": "second", "configuration": {}}]}"#)?;
/// assert_eq!(harness.exchange(&Step::default(), &no_make)?.status, 403);
/// # Ok::<(), String>(())
/// ```
pub struct Policy<S: ControlSet> {
    host: ActiveHost,
    controls: Vec<Running>,
    /// Of the exchange under way.
    notes: Rc<RefCell<Notes>>,
    ticks: Ticks,
    measure: Measure,
    /// Calls under way, and which control's they are.
    calls: Vec<(u32, usize)>,
    /// Places for the state of exchanges that are free again.
    free: Vec<usize>,
    places: usize,
    set: PhantomData<S>,
}

/// One control of the configuration.
struct Running {
    part: Box<dyn Part>,
    callbacks: Callbacks,
    neighbours: Neighbours,
    /// Of its callbacks, if they are measured.
    time: Option<Histogram>,
}

impl<S: ControlSet> Policy<S> {
    /// Builds all controls; on failure the old ones stay.
    fn configure_with(&mut self, tree: Json) -> Result<(), ConfigError> {
        let mut controls = Vec::new();
        let (entries, measure) = entries::<S>(tree)?;
        for (index, entry) in entries.into_iter().enumerate() {
            let neighbours = Neighbours {
                filter: entry.filter.into(),
                notes: self.notes.clone(),
                tick_period_ms: Rc::default(),
                calls: Rc::default(),
            };
            let metadata = &entry.member.metadata;
            let scope = Scope::among(self.host.clone(), metadata.name, neighbours.clone());
            let mut part = (entry.member.make)(scope);
            part.configure(entry.configuration)
                .map_err(|error| error.under(&under(index, ".configuration")))?;
            part.make_room(self.places);
            controls.push(Running {
                part,
                callbacks: metadata.callbacks,
                neighbours,
                time: measure.histogram(&self.host, metadata.name),
            });
        }
        self.controls = controls;
        self.measure = measure;
        self.calls.clear();
        self.ticks = Ticks::default();
        self.look_after_all();
        Ok(())
    }

    /// Takes over what controls asked for: ticks, and calls whose answers they wait for.
    fn look_after(&mut self, index: usize) {
        let Some(running) = self.controls.get(index) else {
            return;
        };
        if let Some(period_ms) = running.neighbours.tick_period_ms.borrow_mut().take() {
            self.ticks.set(&self.host, index, period_ms);
        }
        let mut calls = running.neighbours.calls.borrow_mut();
        self.calls.extend(calls.drain(..).map(|id| (id, index)));
    }

    fn look_after_all(&mut self) {
        for index in 0..self.controls.len() {
            self.look_after(index);
        }
    }

    /// The exchange's place in every control, and its notes put where the controls look for them.
    fn enter(&mut self, exchange: &mut PolicyExchange) -> usize {
        exchange.notes.open();
        std::mem::swap(&mut *self.notes.borrow_mut(), &mut exchange.notes);
        if let Some(place) = exchange.place {
            return place;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places += 1;
            for running in &mut self.controls {
                running.part.make_room(self.places);
            }
            self.places - 1
        });
        exchange.place = Some(place);
        exchange.entered = self.controls.len();
        exchange.measured = self.measure.begin();
        place
    }

    /// Takes the notes back.
    fn leave(&mut self, exchange: &mut PolicyExchange) {
        std::mem::swap(&mut *self.notes.borrow_mut(), &mut exchange.notes);
        exchange.notes.close();
    }

    /// Hands the answer to a call to the control that made it.
    fn answered(
        &mut self,
        id: u32,
        tell: impl FnOnce(&mut dyn Part) -> Vec<Release>,
    ) -> Vec<Release> {
        let Some(at) = self.calls.iter().position(|(known, _)| *known == id) else {
            return Vec::new();
        };
        let (_, index) = self.calls.swap_remove(at);
        let Some(running) = self.controls.get_mut(index) else {
            return Vec::new();
        };
        let released = tell(&mut *running.part);
        self.look_after(index);
        of(index, released).collect()
    }

    /// The request's headers through the controls from `first` on.
    fn request_headers(
        &mut self,
        exchange: &mut PolicyExchange,
        context: u32,
        end_of_stream: bool,
        first: usize,
    ) -> Flow {
        let place = self.enter(exchange);
        let mut flow = Flow::Continue;
        for index in first..self.controls.len() {
            exchange.entered = index + 1;
            let Some(running) = self.controls.get_mut(index) else {
                break;
            };
            if !running.callbacks.contains(Callbacks::REQUEST_HEADERS) {
                continue;
            }
            let time = running.time.as_ref().filter(|_| exchange.measured);
            flow = timed(&self.host, time, || {
                running
                    .part
                    .on_request_headers(place, context, end_of_stream)
            });
            self.look_after(index);
            if flow == Flow::Hold {
                exchange.stop = Some(Stop {
                    control: index,
                    context,
                    end_of_stream,
                });
            }
            if flow != Flow::Continue {
                break;
            }
        }
        self.leave(exchange);
        flow
    }

    /// A piece of a body through the controls that have seen the headers.
    fn body(
        &mut self,
        exchange: &mut PolicyExchange,
        direction: Direction,
        mut size: usize,
        end_of_stream: bool,
    ) -> Flow {
        let place = self.enter(exchange);
        exchange.body_seen |= direction == Direction::Request;
        let mut flow = Flow::Continue;
        let mut step = 0;
        while step < exchange.entered {
            let index = direction.order(step, exchange.entered);
            let from = exchange.passed(direction, index);
            let Some(running) = self.controls.get_mut(index) else {
                break;
            };
            if running.callbacks.contains(direction.callback()) {
                // What it has let pass before is not shown to it again while another holds it.
                let time = running.time.as_ref().filter(|_| exchange.measured);
                (flow, size) = timed(&self.host, time, || {
                    running
                        .part
                        .on_body(place, direction, (from, size), end_of_stream)
                });
                self.look_after(index);
            }
            let stopped = direction == Direction::Request
                && exchange.stop.is_some_and(|stop| stop.control == index);
            if flow == Flow::Continue && stopped {
                flow = self.headers_behind(exchange, index);
            }
            if flow != Flow::Continue {
                break;
            }
            step += 1;
        }
        // Where all of it goes on, the next piece is shown from its start.
        let passed = if step < exchange.entered { step } else { 0 };
        exchange.set_passed(direction, passed, size);
        self.leave(exchange);
        flow
    }

    /// The control at `index`, which held the request's headers, has let the body pass: if it holds them no more, they
    /// go to those behind it.
    fn headers_behind(&mut self, exchange: &mut PolicyExchange, index: usize) -> Flow {
        let Some(place) = exchange.place else {
            return Flow::Hold;
        };
        let holds = self.controls.get_mut(index).map(|it| it.part.holds(place));
        let Some(stop) = exchange.stop.take_if(|_| holds == Some(false)) else {
            return Flow::Hold;
        };
        self.leave(exchange);
        let flow = self.request_headers(exchange, stop.context, stop.end_of_stream, index + 1);
        self.enter(exchange);
        flow
    }

    /// Which controls a response passes: those that the request has reached.
    fn response_headers(&mut self, exchange: &mut PolicyExchange) -> Flow {
        let place = self.enter(exchange);
        let mut flow = Flow::Continue;
        for index in (0..exchange.entered).rev() {
            let Some(running) = self.controls.get_mut(index) else {
                break;
            };
            if running.callbacks.contains(Callbacks::RESPONSE_HEADERS) {
                let time = running.time.as_ref().filter(|_| exchange.measured);
                flow = timed(&self.host, time, || running.part.on_response_headers(place));
                self.look_after(index);
            }
            if flow != Flow::Continue {
                break;
            }
        }
        self.leave(exchange);
        flow
    }
}

impl<S: ControlSet> Filter for Policy<S> {
    type Exchange = PolicyExchange;

    fn metadata() -> Metadata {
        const { metadata::<S>("policy", "") }
    }

    fn schema() -> serde_json::Value {
        let members = S::MEMBERS.iter();
        schema::of_policy(members.map(|it| (it.metadata, (it.schema)())))
    }

    fn new(host: ActiveHost) -> Self {
        Self {
            host,
            controls: Vec::new(),
            notes: Rc::default(),
            ticks: Ticks::default(),
            measure: Measure::default(),
            calls: Vec::new(),
            free: Vec::new(),
            places: 0,
            set: PhantomData,
        }
    }

    fn configure(&mut self) -> bool {
        let configured = configuration::tree(&self.host)
            .and_then(|tree| self.configure_with(tree).map_err(|error| error.line()));
        configured
            .map_err(|line| self.host.log(Level::Error, log::cut(&line)))
            .is_ok()
    }

    fn on_tick(&mut self) -> Vec<Release> {
        let mut released = Vec::new();
        for index in self.ticks.due(&self.host) {
            if let Some(running) = self.controls.get_mut(index) {
                released.extend(of(index, running.part.on_tick()));
                self.look_after(index);
            }
        }
        released
    }

    fn on_http_call_response(&mut self, answer: CallAnswer) -> Vec<Release> {
        self.answered(answer.id, |part| part.on_http_call_response(answer))
    }

    fn on_grpc_call_response(&mut self, answer: GrpcAnswer) -> Vec<Release> {
        self.answered(answer.id, |part| part.on_grpc_call_response(answer))
    }

    fn on_request_headers(
        &mut self,
        exchange: &mut PolicyExchange,
        context: u32,
        end_of_stream: bool,
    ) -> Flow {
        if self.controls.is_empty() {
            return part::refuse_unconfigured(&self.host);
        }
        self.request_headers(exchange, context, end_of_stream, 0)
    }

    fn on_request_body(
        &mut self,
        exchange: &mut PolicyExchange,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        self.body(exchange, Direction::Request, size, end_of_stream)
    }

    fn on_response_headers(&mut self, exchange: &mut PolicyExchange) -> Flow {
        self.response_headers(exchange)
    }

    fn on_response_body(
        &mut self,
        exchange: &mut PolicyExchange,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        self.body(exchange, Direction::Response, size, end_of_stream)
    }

    fn release(&mut self, exchange: &mut PolicyExchange, mut release: Release) -> Flow {
        // Another control's release is none of this exchange's business.
        let Some(stop) = exchange
            .stop
            .take_if(|stop| stop.control == release.control)
        else {
            return Flow::Hold;
        };
        let mut behind = self.controls.iter().skip(stop.control + 1);
        if exchange.body_seen && behind.any(|it| it.callbacks.contains(Callbacks::REQUEST_BODY)) {
            let reason =
                "a control behind reads the body, which hosts do not show again: stand last";
            release.decision = Err(Error::new(reason));
        }
        let place = self.enter(exchange);
        let flow = match self.controls.get_mut(stop.control) {
            Some(running) => running.part.release(place, release),
            None => Flow::Hold,
        };
        self.leave(exchange);
        match flow {
            Flow::Continue => {
                self.request_headers(exchange, stop.context, stop.end_of_stream, stop.control + 1)
            }
            flow => flow,
        }
    }

    fn on_log(&mut self, exchange: &mut PolicyExchange) {
        let place = self.enter(exchange);
        for index in 0..exchange.entered {
            if let Some(running) = self.controls.get_mut(index)
                && running.callbacks.contains(Callbacks::LOG)
            {
                let time = running.time.as_ref().filter(|_| exchange.measured);
                timed(&self.host, time, || running.part.on_log(place));
                self.look_after(index);
            }
        }
        self.leave(exchange);
    }

    fn on_delete(&mut self, exchange: &mut PolicyExchange) {
        if let Some(place) = exchange.place {
            for running in &mut self.controls {
                running.part.on_delete(place);
            }
            self.free.push(place);
        }
        exchange.clear();
    }
}

/// Releases, by the control that they are of.
fn of(control: usize, released: Vec<Release>) -> impl Iterator<Item = Release> {
    released
        .into_iter()
        .map(move |release| Release { control, ..release })
}

macro_rules! tuples {
    ($($control:ident)+) => {
        impl<$($control: Control),+> ControlSet for ($($control,)+) {
            const MEMBERS: &'static [Member] = &[$(Member::of::<$control>()),+];
        }
    };
}

tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G H);
tuples!(A B C D E F G H I);
tuples!(A B C D E F G H I J);
tuples!(A B C D E F G H I J K);
tuples!(A B C D E F G H I J K L);
tuples!(A B C D E F G H I J K L M);
tuples!(A B C D E F G H I J K L M N);
tuples!(A B C D E F G H I J K L M N O);
tuples!(A B C D E F G H I J K L M N O P);
