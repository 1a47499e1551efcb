//! Controls that wait: [`AsyncControl`], whose `on_request` is an `async fn`, and [`Async`], which makes a
//! [`Control`] of it.
//!
//! While the future waits, the request is held; where nothing is awaited, nothing is: the future lives in memory that
//! the last one left, and is done when it was first polled. There are no wakers: what a request waits for is an answer,
//! its body or a tick, and each of these polls it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::async_request::{AsyncRequest, Signals};
use crate::body::Body;
use crate::callbacks::Callbacks;
use crate::configuration::ConfigError;
use crate::control::{Control, Metadata};
use crate::decision::Decision;
use crate::error::Error;
use crate::grpc_call::GrpcCallResponse;
use crate::http_call::{CallId, HttpCallResponse};
use crate::id_table::IdTable;
use crate::limits;
use crate::plugin_context::PluginContext;
use crate::request::{Held, Request};
use crate::response::Response;

/// A control that may wait before it decides about a request: for an HTTP call, the request's body, or time.
///
/// Make it a module with `portcullis_sdk::export!(Async<MyControl>);` and test it as `Async<MyControl>`.
///
/// ```
/// use std::time::SystemTime;
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{Harness, Step, no_make};
///
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// /// Lets bodies pass that begin as a JSON object does, of at most a KiB.
/// struct Objects;
///
/// impl AsyncControl for Objects {
///     const METADATA: Metadata = Metadata::new("objects", "1.0.0", Callbacks::NONE).awaits_body();
///     type Config = Config;
///
///     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
///         Ok(Self)
///     }
///
///     async fn on_request(&self, request: AsyncRequest) -> Result<Decision, Error> {
///         match request.body(1024).await? {
///             Some(body) if body.starts_with(b"{") => Ok(Decision::Continue),
///             _ => Ok(LocalResponse::refuse(400, "no_object", "Bad Request").into()),
///         }
///     }
/// }
///
/// let mut harness = Harness::<Async<Objects>>::new(SystemTime::UNIX_EPOCH);
/// harness.configure("{}")?;
/// let mut step = Step::default();
/// step.request.method = "POST".into();
/// step.request.body = "[]".into();
/// assert_eq!(harness.exchange(&step, &no_make)?.status, 400);
/// step.request.body = "{}".into();
/// assert_eq!(harness.exchange(&step, &no_make)?.status, 200);
/// # Ok::<(), String>(())
/// ```
pub trait AsyncControl: Sized + 'static {
    /// What the control is called and what it does. The callbacks that waiting needs are added by [`Async`]; list
    /// [`Callbacks::RESPONSE_HEADERS`] if the control implements that one, and [`Callbacks::GRPC_CALL_RESPONSE`] if it
    /// awaits gRPC calls. A control that awaits bodies says
    /// [`Metadata::awaits_body`].
    const METADATA: Metadata;

    /// The longest that a request may be held in all. What is awaited beyond it is an error, so a refusal.
    const HELD_MAX: Duration = Duration::from_secs(5);

    /// What an operator writes under `configuration`, as in [`Control::Config`].
    type Config: DeserializeOwned + JsonSchema;

    /// As [`Control::configure`].
    fn configure(config: Self::Config, plugin: &mut PluginContext) -> Result<Self, ConfigError>;

    /// Decides about a request. Write it as `async fn`.
    fn on_request(&self, request: AsyncRequest) -> impl Future<Output = Result<Decision, Error>>;

    /// As [`Control::on_response_headers`].
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// # struct Config {}
    /// # struct Marks;
    /// # impl AsyncControl for Marks {
    /// #     const METADATA: Metadata = Metadata::new("marks", "1.0.0", Callbacks::RESPONSE_HEADERS);
    /// #     type Config = Config;
    /// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> { Ok(Self) }
    /// #     async fn on_request(&self, _: AsyncRequest) -> Result<Decision, Error> { Ok(Decision::Continue) }
    /// fn on_response_headers(&self, response: &mut Response) -> Result<Decision, Error> {
    ///     response.set_header("cache-control", "no-store")?;
    ///     Ok(Decision::Continue)
    /// }
    /// # }
    /// ```
    fn on_response_headers(&self, response: &mut Response<'_>) -> Result<Decision, Error> {
        let _ = response;
        Ok(Decision::Continue)
    }
}

/// An [`AsyncControl`] as a [`Control`].
///
/// ```
/// use portcullis_sdk::prelude::*;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// struct Slow;
///
/// impl AsyncControl for Slow {
///     const METADATA: Metadata = Metadata::new("slow", "1.0.0", Callbacks::NONE);
///     type Config = Config;
///
///     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
///         Ok(Self)
///     }
///
///     async fn on_request(&self, request: AsyncRequest) -> Result<Decision, Error> {
///         request.sleep(std::time::Duration::from_millis(10)).await?;
///         Ok(Decision::Continue)
///     }
/// }
///
/// portcullis_sdk::export!(Async<Slow>);
/// # fn main() {}
/// ```
pub struct Async<C: AsyncControl> {
    control: Rc<C>,
    tasks: Box<dyn Tasks<C>>,
    /// Which task waits for a call.
    calls: IdTable<usize>,
    /// Tasks whose exchange was over before they were done.
    abandoned: Abandoned,
}

type Abandoned = Rc<std::cell::RefCell<VecDeque<usize>>>;

/// A task that waits; its exchange holds it.
#[derive(Default)]
pub struct Waiting(Option<(usize, Abandoned)>);

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((task, abandoned)) = self.0.take() {
            abandoned.borrow_mut().push_back(task);
        }
    }
}

impl<C: AsyncControl> Async<C> {
    /// Polls a task; one that is done is freed.
    fn poll(&mut self, task: usize) -> Poll<Result<Decision, Error>> {
        let polled = self.tasks.poll(task);
        match &polled {
            Poll::Ready(_) => self.tasks.free(task),
            Poll::Pending => {
                if let Some(signals) = self.tasks.signals(task) {
                    for call in signals.new_calls() {
                        self.calls.insert(call, task);
                    }
                }
            }
        }
        polled
    }

    fn clear_abandoned(&mut self) {
        while let Some(task) = self.abandoned.borrow_mut().pop_front() {
            self.tasks.free(task);
        }
    }

    /// Polls a task outside of its exchange's callbacks; what it decided releases the request.
    fn go_on(&mut self, plugin: &mut PluginContext, task: usize) {
        let Some(context) = self.tasks.signals(task).map(|signals| signals.context()) else {
            return;
        };
        // The task's own hostcalls are about its request.
        if plugin.set_effective_context(context).is_err() {
            return;
        }
        if let Poll::Ready(decision) = self.poll(task) {
            plugin.release(Held(context), decision);
        }
    }

    /// Asks for a tick when the next task wants to be polled.
    fn next_alarm(&self) -> Option<u64> {
        self.tasks.next_alarm()
    }
}

impl<C: AsyncControl> Control for Async<C> {
    const METADATA: Metadata = {
        let mut metadata = C::METADATA;
        let waits = Callbacks::REQUEST_HEADERS
            .and(Callbacks::HTTP_CALL_RESPONSE)
            .and(Callbacks::TICK);
        metadata.callbacks = metadata.callbacks.and(waits);
        if metadata.awaits_body {
            metadata.callbacks = metadata.callbacks.and(Callbacks::REQUEST_BODY);
        }
        metadata
    };

    type Config = C::Config;
    type State = Waiting;

    fn configure(config: C::Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self {
            control: Rc::new(C::configure(config, plugin)?),
            tasks: tasks_of(
                |control: Rc<C>, request| async move { control.on_request(request).await },
            ),
            calls: IdTable::new(),
            abandoned: Rc::default(),
        })
    }

    fn on_request_headers(
        &mut self,
        state: &mut Waiting,
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        self.clear_abandoned();
        let signals = self.tasks.spare_signals();
        signals.begin(request, &C::METADATA, C::HELD_MAX);
        let handle = AsyncRequest::new(request.scope(), signals.clone());
        let task = self.tasks.start(self.control.clone(), handle, signals);
        match self.poll(task) {
            Poll::Ready(decision) => decision,
            Poll::Pending => {
                state.0 = Some((task, self.abandoned.clone()));
                let _held = request.hold();
                if let Some(alarm) = self.next_alarm() {
                    request.scope().set_alarm(alarm)?;
                }
                Ok(Decision::Continue)
            }
        }
    }

    fn on_request_body(
        &mut self,
        state: &mut Waiting,
        body: &mut Body<'_>,
    ) -> Result<Decision, Error> {
        let waiting = state.0.as_ref().map(|(task, _)| *task);
        let Some((task, signals)) =
            waiting.and_then(|task| Some((task, self.tasks.signals(task)?.clone())))
        else {
            return Ok(Decision::Continue);
        };
        if body.size() > limits::AWAITED_BODY_BYTES_MAX {
            signals.set_body(None);
        } else if body.end_of_stream() {
            signals.set_body(Some(body.read(0, body.size())?));
        } else {
            body.hold();
            return Ok(Decision::Continue);
        }
        match self.poll(task) {
            Poll::Ready(decision) => {
                if let Some((_, _)) = state.0.take() {
                    body.release();
                }
                decision
            }
            Poll::Pending => {
                body.hold();
                Ok(Decision::Continue)
            }
        }
    }

    fn on_response_headers(
        &mut self,
        _: &mut Waiting,
        response: &mut Response<'_>,
    ) -> Result<Decision, Error> {
        self.control.on_response_headers(response)
    }

    fn on_tick(&mut self, plugin: &mut PluginContext) {
        self.clear_abandoned();
        for task in self.tasks.due(plugin.now_ns()) {
            self.go_on(plugin, task);
        }
        // Without an alarm the ticks end.
        let _ = match self.next_alarm() {
            Some(alarm) => plugin.set_alarm(alarm),
            None => plugin.set_tick_period(Duration::ZERO),
        };
    }

    fn on_http_call_response(
        &mut self,
        plugin: &mut PluginContext,
        call: CallId,
        response: &HttpCallResponse<'_>,
    ) {
        self.clear_abandoned();
        let Some(task) = self.calls.remove(call.0) else {
            return;
        };
        if let Some(signals) = self.tasks.signals(task)
            && signals.answer(call.0, response)
        {
            self.go_on(plugin, task);
        }
    }

    fn on_grpc_call_response(
        &mut self,
        plugin: &mut PluginContext,
        call: CallId,
        response: &GrpcCallResponse<'_>,
    ) {
        self.clear_abandoned();
        let Some(task) = self.calls.remove(call.0) else {
            return;
        };
        if let Some(signals) = self.tasks.signals(task)
            && signals.answer_grpc(call.0, response)
        {
            self.go_on(plugin, task);
        }
    }
}

/// The futures of a control, of a type that only the function that makes them knows.
trait Tasks<C> {
    /// Signals that no task uses.
    fn spare_signals(&mut self) -> Rc<Signals>;
    fn start(&mut self, control: Rc<C>, request: AsyncRequest, signals: Rc<Signals>) -> usize;
    fn poll(&mut self, task: usize) -> Poll<Result<Decision, Error>>;
    fn signals(&self, task: usize) -> Option<&Rc<Signals>>;
    fn free(&mut self, task: usize);
    /// Those that wanted to be polled by `now_ns`.
    fn due(&self, now_ns: u64) -> Vec<usize>;
    /// When the next one wants to be polled.
    fn next_alarm(&self) -> Option<u64>;
}

/// Memory for futures, used again and again.
struct Pool<F, M> {
    make: M,
    futures: Vec<Task<F>>,
    free: Vec<usize>,
    spare: Option<Rc<Signals>>,
}

/// Room for one future; both are there, or neither.
struct Task<F> {
    future: Pin<Box<Option<F>>>,
    signals: Option<Rc<Signals>>,
}

fn tasks_of<C, F, M>(make: M) -> Box<dyn Tasks<C>>
where
    F: Future<Output = Result<Decision, Error>> + 'static,
    M: Fn(Rc<C>, AsyncRequest) -> F + 'static,
{
    Box::new(Pool {
        make,
        futures: Vec::new(),
        free: Vec::new(),
        spare: None,
    })
}

impl<C, F, M> Tasks<C> for Pool<F, M>
where
    F: Future<Output = Result<Decision, Error>>,
    M: Fn(Rc<C>, AsyncRequest) -> F,
{
    fn spare_signals(&mut self) -> Rc<Signals> {
        // A handle that outlived its task keeps its signals.
        let spare = self.spare.take();
        spare
            .filter(|signals| Rc::strong_count(signals) == 1)
            .unwrap_or_default()
    }

    fn start(&mut self, control: Rc<C>, request: AsyncRequest, signals: Rc<Signals>) -> usize {
        let task = self.free.pop().unwrap_or_else(|| {
            self.futures.push(Task {
                future: Box::pin(None),
                signals: None,
            });
            self.futures.len() - 1
        });
        if let Some(room) = self.futures.get_mut(task) {
            room.future
                .as_mut()
                .set(Some((self.make)(control, request)));
            room.signals = Some(signals);
        }
        task
    }

    fn poll(&mut self, task: usize) -> Poll<Result<Decision, Error>> {
        let future = self.futures.get_mut(task);
        match future.and_then(|task| task.future.as_mut().as_pin_mut()) {
            Some(future) => future.poll(&mut Context::from_waker(Waker::noop())),
            None => Poll::Pending,
        }
    }

    fn signals(&self, task: usize) -> Option<&Rc<Signals>> {
        self.futures.get(task)?.signals.as_ref()
    }

    fn free(&mut self, task: usize) {
        if let Some(room) = self.futures.get_mut(task) {
            room.future.as_mut().set(None);
            self.spare = room.signals.take();
            self.free.push(task);
        }
    }

    fn due(&self, now_ns: u64) -> Vec<usize> {
        let is_due = |signals: &Signals| signals.alarm().is_some_and(|alarm| alarm <= now_ns);
        let tasks = self.futures.iter().zip(0..);
        tasks
            .filter(|(task, _)| task.signals.as_deref().is_some_and(is_due))
            .map(|(_, index)| index)
            .collect()
    }

    fn next_alarm(&self) -> Option<u64> {
        let signals = self.futures.iter().filter_map(|task| task.signals.as_ref());
        signals.filter_map(|signals| signals.alarm()).min()
    }
}
