//! The request as an [`AsyncControl`](crate::AsyncControl) sees it, and what it can await.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::callbacks::Callbacks;
use crate::connection::Connection;
use crate::control::Metadata;
use crate::cookies::Cookies;
use crate::error::Error;
use crate::fields::{self, CheckedHeader, FieldPairs};
use crate::foreign::Foreign;
use crate::form::{self, Form};
use crate::grpc_call::{GrpcCallResponse, GrpcError};
use crate::host::{Host, Level, Map};
use crate::http_call::HttpCallResponse;
use crate::limits;
use crate::log::{self, Field};
use crate::plugin_context::whole_ms;
use crate::request::{Request, exchange_functions, field_functions, request_functions};
use crate::scope::Scope;
use crate::shared_data::SharedData;
use crate::verified_claims::VerifiedClaims;

/// A request that may be waited with. Until the control has decided, nothing of it goes on, so headers can be read and
/// changed before and after each `await`.
///
/// ```
/// use std::time::Duration;
///
/// use portcullis_sdk::prelude::*;
///
/// /// Asks how risky a client is, and tells the upstream what was said.
/// async fn on_request(mut request: AsyncRequest) -> Result<Decision, Error> {
///     let headers = [(":method", "GET"), (":path", "/score"), (":authority", "risk")];
///     let answer = request.http_call("risk", &headers, b"", Duration::from_millis(200)).await?;
///     request.set_header("x-risk", answer.body())?;
///     Ok(Decision::Continue)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncRequest {
    scope: Scope,
    signals: Rc<Signals>,
}

/// The answer to an awaited HTTP call.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// The service says yes by 200, and who it is.
/// fn user(answer: &CallResponse) -> Option<&[u8]> {
///     answer.headers().first("x-user").filter(|_| answer.status() == 200 && answer.body().is_empty())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct CallResponse {
    status: u16,
    headers: FieldPairs,
    body: Vec<u8>,
}

impl CallResponse {
    /// The status. A call that timed out is answered with 504 by the proxy.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Its headers, `:status` among them.
    pub fn headers(&self) -> &FieldPairs {
        &self.headers
    }

    /// Its body; bounded, see [`AsyncRequest::http_call`].
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

impl AsyncRequest {
    pub(crate) fn new(scope: &Scope, signals: Rc<Signals>) -> Self {
        Self {
            scope: scope.clone(),
            signals,
        }
    }

    /// Calls a cluster that the operator lets this plugin call, and awaits the answer. `headers` must have `:method`,
    /// `:path` and `:authority`. An error: an unknown cluster, a reset, no answer within `timeout` or within
    /// [`HELD_MAX`](crate::AsyncControl::HELD_MAX), or a body above 1 MiB. Several calls can be awaited at once.
    pub async fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> Result<CallResponse, Error> {
        let timeout = timeout.min(self.time_left()?);
        let id = self
            .scope
            .http_call(cluster, headers, body, whole_ms(timeout))?;
        self.signals.calls.borrow_mut().push(Call {
            id,
            is_new: true,
            answer: None,
        });
        let signals = &self.signals;
        match (Answer { signals, id }).await {
            Answered::Http(answer) => answer,
            Answered::Grpc(_) => Err(Error::Malformed("the answer to an HTTP call")),
        }
    }

    /// Calls a method of a gRPC service with one message (its bytes, as protobuf encodes it) and awaits the message that
    /// answers. `service` is its full name. Only for controls whose metadata lists
    /// [`Callbacks::GRPC_CALL_RESPONSE`](crate::Callbacks::GRPC_CALL_RESPONSE); the cluster speaks HTTP/2.
    ///
    /// An error is the status that the call ended with; 14 where the call could not be made, 4 where it took longer than
    /// `timeout` or than [`HELD_MAX`](crate::AsyncControl::HELD_MAX), 8 for a message above 1 MiB. With `?` it becomes an
    /// [`Error`], so a refusal.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use portcullis_sdk::prelude::*;
    ///
    /// /// Lets pass what the service answers `{allowed: true}` to: field 1, a flag.
    /// async fn ask(request: &AsyncRequest, question: &[u8]) -> Result<Decision, Error> {
    ///     let timeout = Duration::from_millis(500);
    ///     let answer = request.grpc_call("authz", "example.Authorizer", "Check", question, timeout).await;
    ///     match answer {
    ///         Ok(message) if message == b"\x08\x01" => Ok(Decision::Continue),
    ///         Ok(_) => Ok(LocalResponse::refuse(403, "denied", "Forbidden").into()),
    ///         // 7: PERMISSION_DENIED
    ///         Err(error) if error.status() == 7 => Ok(LocalResponse::refuse(403, "denied", "Forbidden").into()),
    ///         Err(error) => Err(error.into()),
    ///     }
    /// }
    /// ```
    pub async fn grpc_call(
        &self,
        cluster: &str,
        service: &str,
        method: &str,
        message: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, GrpcError> {
        if !self.signals.calls_grpc.get() {
            let reason = "the control's metadata does not list `GRPC_CALL_RESPONSE`";
            return Err(GrpcError::new(GrpcError::UNAVAILABLE, reason));
        }
        let left = self
            .time_left()
            .map_err(|error| GrpcError::new(GrpcError::DEADLINE_EXCEEDED, error.to_string()))?;
        let timeout = whole_ms(timeout.min(left));
        let id = self
            .scope
            .grpc_call(cluster, (service, method), message, timeout)
            .map_err(|error| GrpcError::new(GrpcError::UNAVAILABLE, error.to_string()))?;
        self.signals.calls.borrow_mut().push(Call {
            id,
            is_new: true,
            answer: None,
        });
        let signals = &self.signals;
        match (Answer { signals, id }).await {
            Answered::Grpc(answer) => answer,
            Answered::Http(_) => Err(GrpcError::new(GrpcError::INTERNAL, "an HTTP answer")),
        }
    }

    /// The whole body of the request, or `None` if it is longer than `max` (at most 1 MiB). Only for controls that say
    /// [`Metadata::awaits_body`](crate::Metadata::awaits_body).
    pub async fn body(&self, max: usize) -> Result<Option<Vec<u8>>, Error> {
        if !self.signals.awaits_body.get() {
            return Err(Error::new(
                "the control's metadata does not say `awaits_body`",
            ));
        }
        let alarm = self.deadline_ns();
        let body = Wait {
            request: self,
            alarm,
            done: |request: &Self| request.signals.body.borrow().clone(),
        };
        match body.await {
            Some(body) => Ok(body.filter(|body| body.len() <= max)),
            None => Err(too_long()),
        }
    }

    /// Waits. Longer than the rest of [`HELD_MAX`](crate::AsyncControl::HELD_MAX) is an error at its end.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use portcullis_sdk::prelude::*;
    /// /// A wrong password costs a second.
    /// async fn slow_down(request: &AsyncRequest) -> Result<(), Error> {
    ///     request.sleep(Duration::from_secs(1)).await
    /// }
    /// ```
    pub async fn sleep(&self, duration: Duration) -> Result<(), Error> {
        let wanted = self.scope.host.now_ns().saturating_add(nanos(duration));
        let deadline = self.deadline_ns();
        let never = Wait {
            request: self,
            alarm: wanted.min(deadline),
            done: |_: &Self| None::<()>,
        };
        never.await;
        if wanted > deadline {
            Err(too_long())
        } else {
            Ok(())
        }
    }

    /// Whether the request has no body.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// async fn size(request: &AsyncRequest) -> Result<usize, Error> {
    ///     if request.end_of_stream() {
    ///         return Ok(0);
    ///     }
    ///     Ok(request.body(64 * 1024).await?.map_or(0, |body| body.len()))
    /// }
    /// ```
    pub fn end_of_stream(&self) -> bool {
        self.signals.end_of_stream.get()
    }

    request_functions!();
    field_functions!(Map::Request);
    exchange_functions!();

    fn time_left(&self) -> Result<Duration, Error> {
        let left = self.deadline_ns().saturating_sub(self.scope.host.now_ns());
        if left == 0 {
            return Err(too_long());
        }
        Ok(Duration::from_nanos(left))
    }

    /// Counted from the first time that something is awaited.
    fn deadline_ns(&self) -> u64 {
        let set = self.signals.deadline_ns.get();
        set.unwrap_or_else(|| {
            let held_max = nanos(self.signals.held_max.get());
            let deadline = self.scope.host.now_ns().saturating_add(held_max);
            self.signals.deadline_ns.set(Some(deadline));
            deadline
        })
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cold]
fn too_long() -> Error {
    Error::new("the request is held for too long")
}

/// The answer to a call.
struct Answer<'a> {
    signals: &'a Signals,
    id: u32,
}

impl Future for Answer<'_> {
    type Output = Answered;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answered> {
        let mut calls = self.signals.calls.borrow_mut();
        let call = calls.iter_mut().find(|call| call.id == self.id);
        match call.and_then(|call| call.answer.take()) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.signals
            .calls
            .borrow_mut()
            .retain(|call| call.id != self.id);
    }
}

/// Something that is there at last, or else (`None`) the time is over.
struct Wait<'a, D> {
    request: &'a AsyncRequest,
    alarm: u64,
    done: D,
}

impl<T, D: Fn(&AsyncRequest) -> Option<T> + Unpin> Future for Wait<'_, D> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        let signals = &self.request.signals;
        if let Some(done) = (self.done)(self.request) {
            signals.silence(self.alarm);
            return Poll::Ready(Some(done));
        }
        if self.request.scope.host.now_ns() >= self.alarm {
            signals.silence(self.alarm);
            return Poll::Ready(None);
        }
        signals.set_alarm(self.alarm);
        Poll::Pending
    }
}

/// What a request waits for, and what has come of it.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    context: Cell<u32>,
    end_of_stream: Cell<bool>,
    awaits_body: Cell<bool>,
    calls_grpc: Cell<bool>,
    held_max: Cell<Duration>,
    deadline_ns: Cell<Option<u64>>,
    alarms: RefCell<Vec<u64>>,
    calls: RefCell<Vec<Call>>,
    /// `Some(None)`: it is too long.
    body: RefCell<Option<Option<Vec<u8>>>>,
}

#[derive(Debug)]
struct Call {
    id: u32,
    /// Nobody has asked for it yet.
    is_new: bool,
    answer: Option<Answered>,
}

/// What has come of a call.
#[derive(Debug)]
enum Answered {
    Http(Result<CallResponse, Error>),
    Grpc(Result<Vec<u8>, GrpcError>),
}

impl Signals {
    /// Makes them those of another request.
    pub(crate) fn begin(&self, request: &Request<'_>, metadata: &Metadata, held_max: Duration) {
        self.context.set(request.context());
        self.end_of_stream.set(request.end_of_stream());
        self.awaits_body.set(metadata.awaits_body);
        let callbacks = metadata.callbacks;
        self.calls_grpc
            .set(callbacks.contains(Callbacks::GRPC_CALL_RESPONSE));
        self.held_max.set(held_max);
        self.deadline_ns.set(None);
        self.alarms.borrow_mut().clear();
        self.calls.borrow_mut().clear();
        let empty = request.end_of_stream().then(|| Some(Vec::new()));
        *self.body.borrow_mut() = empty;
    }

    pub(crate) fn context(&self) -> u32 {
        self.context.get()
    }

    /// Calls that were started since this was asked for.
    pub(crate) fn new_calls(&self) -> Vec<u32> {
        let mut calls = self.calls.borrow_mut();
        let fresh = calls.iter_mut().filter(|call| call.is_new);
        fresh
            .map(|call| {
                call.is_new = false;
                call.id
            })
            .collect()
    }

    /// A call is answered; whether anybody still waits for it.
    pub(crate) fn answer(&self, id: u32, response: &HttpCallResponse<'_>) -> bool {
        self.set_answer(id, || Answered::Http(read(response)))
    }

    /// As [`answer`](Self::answer), of a gRPC call.
    pub(crate) fn answer_grpc(&self, id: u32, response: &GrpcCallResponse<'_>) -> bool {
        let max = limits::AWAITED_BODY_BYTES_MAX;
        self.set_answer(id, || Answered::Grpc(response.message(max)))
    }

    fn set_answer(&self, id: u32, read: impl FnOnce() -> Answered) -> bool {
        let mut calls = self.calls.borrow_mut();
        let Some(call) = calls.iter_mut().find(|call| call.id == id) else {
            return false;
        };
        call.answer = Some(read());
        true
    }

    /// The body is there; `None`: it is too long.
    pub(crate) fn set_body(&self, body: Option<Vec<u8>>) {
        *self.body.borrow_mut() = Some(body);
    }

    /// When the task wants to be polled.
    pub(crate) fn alarm(&self) -> Option<u64> {
        self.alarms.borrow().iter().min().copied()
    }

    fn set_alarm(&self, alarm: u64) {
        let mut alarms = self.alarms.borrow_mut();
        if !alarms.contains(&alarm) {
            alarms.push(alarm);
        }
    }

    fn silence(&self, alarm: u64) {
        self.alarms.borrow_mut().retain(|set| *set != alarm);
    }
}

fn read(response: &HttpCallResponse<'_>) -> Result<CallResponse, Error> {
    let status = response
        .status()?
        .ok_or_else(|| Error::new("the HTTP call was reset"))?;
    Ok(CallResponse {
        status,
        headers: response.all_headers()?,
        body: response.body(limits::AWAITED_BODY_BYTES_MAX)?,
    })
}
