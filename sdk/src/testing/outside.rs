//! What happens around a plugin while no callback of an exchange runs: time, ticks, and the answers of clusters.

use std::time::{Duration, UNIX_EPOCH};

use portcullis_cases::{Callout, Make};

use crate::callbacks::Callbacks;
use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
use crate::host::native::{Call, Fields, NativeHost};

/// Ticks that one `advance` may fire; a tick period of a millisecond over an hour is a mistake.
const TICKS_MAX: u32 = 10_000;

/// How long an exchange may be held; then what holds it is taken for lost.
const HELD_MAX: Duration = Duration::from_secs(600);

/// The clusters, and when the next tick is due.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    callouts: Vec<Callout>,
    next_tick_ns: Option<u64>,
    /// Since the exchange under way was first held.
    held: Duration,
}

impl Outside {
    /// What clusters answer, in order; the last of a cluster repeats. A cluster without an answer is unknown.
    pub(crate) fn set_callouts(&mut self, host: &NativeHost, callouts: Vec<Callout>) {
        let names = callouts.iter().map(|callout| callout.cluster.clone());
        *host.world().clusters.borrow_mut() = names.collect();
        self.callouts = callouts;
    }

    /// Takes note of the period that the plugin has set.
    pub(crate) fn arm_tick(&mut self, host: &NativeHost) {
        let world = host.world();
        let period_ns = u64::from(world.tick_period_ms.get()).saturating_mul(1_000_000);
        self.next_tick_ns = (period_ns > 0).then(|| world.now_ns.get().saturating_add(period_ns));
    }

    /// Lets time pass: every tick that falls due, and the answers to the calls it starts.
    pub(crate) fn advance<F: Filter>(
        &mut self,
        host: &NativeHost,
        filter: &mut F,
        by: Duration,
        make: Make<'_>,
    ) -> Result<(), String> {
        let now = host.world().now_ns.get();
        let end = now.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
        self.answer_calls(host, filter, make)?;
        let mut ticks = 0;
        while let Some(due) = self.next_tick_ns.filter(|due| *due <= end) {
            ticks += 1;
            if ticks > TICKS_MAX {
                return Err(format!("more than {TICKS_MAX} ticks in one advance"));
            }
            self.tick(host, filter, due);
            self.answer_calls(host, filter, make)?;
        }
        host.world().now_ns.set(end);
        Ok(())
    }

    /// Answers all calls that are under way, and those that their answers start.
    pub(crate) fn answer_calls<F: Filter>(
        &mut self,
        host: &NativeHost,
        filter: &mut F,
        make: Make<'_>,
    ) -> Result<(), String> {
        while let Some(call) = next_call(host) {
            self.answer(host, filter, &call, make)?;
        }
        Ok(())
    }

    /// The next thing that can let a held exchange go on: the answer to a call, or else a tick.
    pub(crate) fn pass<F: Filter>(
        &mut self,
        host: &NativeHost,
        filter: &mut F,
        make: Make<'_>,
    ) -> Result<Vec<Release>, String> {
        if let Some(call) = next_call(host) {
            return self.answer(host, filter, &call, make);
        }
        self.arm_tick(host);
        let now = host.world().now_ns.get();
        let Some(due) = self.next_tick_ns else {
            return Err("the request is held, and nothing will release it".into());
        };
        self.held += Duration::from_nanos(due.saturating_sub(now));
        if self.held > HELD_MAX {
            return Err(format!("the request is held for more than {HELD_MAX:?}"));
        }
        Ok(self.tick(host, filter, due))
    }

    /// An exchange begins.
    pub(crate) fn begin(&mut self) {
        self.held = Duration::ZERO;
    }

    fn tick<F: Filter>(&mut self, host: &NativeHost, filter: &mut F, due: u64) -> Vec<Release> {
        host.world().now_ns.set(due);
        let released = if F::metadata().callbacks.contains(Callbacks::TICK) {
            filter.on_tick()
        } else {
            Vec::new()
        };
        self.arm_tick(host);
        released
    }

    fn answer<F: Filter>(
        &mut self,
        host: &NativeHost,
        filter: &mut F,
        call: &Call,
        make: Make<'_>,
    ) -> Result<Vec<Release>, String> {
        if call.is_grpc {
            return self.answer_grpc(host, filter, call, make);
        }
        let (headers, body) = self.answer_to(host, call, make)?;
        let answer = CallAnswer {
            id: call.id,
            header_count: headers.len(),
            body_size: body.len(),
        };
        *host.world().call_answer.borrow_mut() = Some((headers, body));
        let released = if F::metadata()
            .callbacks
            .contains(Callbacks::HTTP_CALL_RESPONSE)
        {
            filter.on_http_call_response(answer)
        } else {
            Vec::new()
        };
        *host.world().call_answer.borrow_mut() = None;
        Ok(released)
    }

    fn answer_grpc<F: Filter>(
        &mut self,
        host: &NativeHost,
        filter: &mut F,
        call: &Call,
        make: Make<'_>,
    ) -> Result<Vec<Release>, String> {
        let now = UNIX_EPOCH + Duration::from_nanos(host.world().now_ns.get());
        let answer = match self.take_callout(call) {
            // What Envoy ends a call with that times out.
            None => Err((4, String::new())),
            Some(callout) => match callout.grpc_status {
                Some(0) => {
                    let body = callout.body.map(|body| body.bytes(now, make));
                    Ok(body.transpose()?.unwrap_or_default())
                }
                status => Err((status.unwrap_or(2), callout.grpc_message)),
            },
        };
        let outcome = match &answer {
            Ok(message) => Ok(message.len()),
            Err((status, _)) => Err(*status),
        };
        *host.world().grpc_answer.borrow_mut() = Some(answer);
        let listens = F::metadata()
            .callbacks
            .contains(Callbacks::GRPC_CALL_RESPONSE);
        let released = match listens {
            true => filter.on_grpc_call_response(GrpcAnswer {
                id: call.id,
                outcome,
            }),
            false => Vec::new(),
        };
        *host.world().grpc_answer.borrow_mut() = None;
        Ok(released)
    }

    /// The answer to a call: the first that fits, which is used up unless it is the last.
    fn take_callout(&mut self, call: &Call) -> Option<Callout> {
        let fits = |callout: &Callout| {
            callout.cluster == call.cluster
                && callout.grpc_status.is_some() == call.is_grpc
                && callout.path.as_ref().is_none_or(|path| *path == call.path)
        };
        let mut fitting = self
            .callouts
            .iter()
            .enumerate()
            .filter(|(_, callout)| fits(callout));
        let first = fitting
            .next()
            .map(|(index, callout)| (index, callout.clone()));
        let (index, callout) = first?;
        if fitting.next().is_some() {
            self.callouts.remove(index);
        }
        Some(callout)
    }

    fn answer_to(
        &mut self,
        host: &NativeHost,
        call: &Call,
        make: Make<'_>,
    ) -> Result<(Fields, Vec<u8>), String> {
        let now = UNIX_EPOCH + Duration::from_nanos(host.world().now_ns.get());
        let Some(callout) = self.take_callout(call) else {
            // What Envoy answers to a call that times out.
            return Ok((
                vec![(b":status".to_vec(), b"504".to_vec())],
                b"upstream request timeout".to_vec(),
            ));
        };
        let mut headers = vec![(b":status".to_vec(), callout.status.to_string().into_bytes())];
        for (name, value) in &callout.headers {
            headers.push((
                name.to_ascii_lowercase().into_bytes(),
                value.bytes(now, make)?,
            ));
        }
        let body = callout.body.map(|body| body.bytes(now, make)).transpose()?;
        Ok((headers, body.unwrap_or_default()))
    }
}

/// The call that was started first, of those under way.
fn next_call(host: &NativeHost) -> Option<Call> {
    let mut calls = host.world().calls.borrow_mut();
    (!calls.is_empty()).then(|| calls.remove(0))
}
