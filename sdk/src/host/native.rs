//! A host in memory, for tests: what Envoy does behind the ABI, without sockets, threads or a clock of its own.
//!
//! It follows Envoy where the ABI's text and Envoy differ: a header map of another phase answers BAD_ARGUMENT, and its
//! pairs are empty; a compare-and-swap onto a key that is not there succeeds; versions come from one counter; a second
//! local response in a callback is taken and ignored.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;

use crate::error::Status;
use crate::fields::encode;
use crate::host::{Buffer, Host, Level, Map, MetricKind};

pub(crate) use portcullis_cases::Fields;

/// A function that answers a foreign call.
pub type ForeignFunction = Box<dyn Fn(&[u8]) -> Result<Vec<u8>, Status>>;

/// A handle to the host; clones are the same host.
#[derive(Clone, Default)]
pub struct NativeHost(Rc<World>);

/// All that the host knows.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) now_ns: Cell<u64>,
    /// How far each look at the clock moves it.
    pub(crate) clock_step_ns: Cell<u64>,
    pub(crate) log: RefCell<Vec<(Level, String)>>,
    pub(crate) tick_period_ms: Cell<u32>,
    pub(crate) configuration: RefCell<Vec<u8>>,
    pub(crate) exchange: RefCell<ExchangeWorld>,
    pub(crate) plugin_properties: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(crate) foreign: RefCell<BTreeMap<String, ForeignFunction>>,
    pub(crate) clusters: RefCell<Vec<String>>,
    pub(crate) calls: RefCell<Vec<Call>>,
    pub(crate) call_answer: RefCell<Option<(Fields, Vec<u8>)>>,
    /// The gRPC call that is answered: its message, or its status and what is said of it.
    pub(crate) grpc_answer: RefCell<Option<GrpcOutcome>>,
    calls_started: Cell<u32>,
    shared: RefCell<BTreeMap<String, (Vec<u8>, u32)>>,
    shared_version: Cell<u32>,
    metrics: RefCell<Vec<(String, MetricKind, u64)>>,
    in_exchange: Cell<bool>,
}

/// A message, or a status and what is said of it.
pub(crate) type GrpcOutcome = Result<Vec<u8>, (u32, String)>;

/// What the host knows of the exchange under way.
#[derive(Default)]
pub(crate) struct ExchangeWorld {
    pub(crate) phase: Phase,
    pub(crate) request: Fields,
    pub(crate) response: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) answer: Option<LocalAnswer>,
}

/// Where an exchange stands; it decides which maps and buffers are in reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Outside,
    RequestHeaders,
    RequestBody,
    ResponseHeaders,
    ResponseBody,
    Log,
}

/// A local response as the plugin sent it.
#[derive(Clone, Debug)]
pub(crate) struct LocalAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
}

/// An HTTP or gRPC call that the plugin started.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: u32,
    pub(crate) is_grpc: bool,
    pub(crate) cluster: String,
    pub(crate) path: String,
}

impl NativeHost {
    pub(crate) fn world(&self) -> &World {
        &self.0
    }

    /// Puts the host before (`Some`) or after (`None`) an exchange.
    pub(crate) fn set_exchange(&self, exchange: Option<ExchangeWorld>) {
        self.0.in_exchange.set(exchange.is_some());
        *self.0.exchange.borrow_mut() = exchange.unwrap_or_default();
    }

    /// The value of a metric; `None` if it was never defined.
    pub(crate) fn metric_value(&self, name: &str) -> Option<u64> {
        self.0
            .metrics
            .borrow()
            .iter()
            .find(|(known, ..)| known == name)
            .map(|(.., value)| *value)
    }

    /// Envoy counts calls in fours, and tells their kinds by what is over: HTTP 0, gRPC 1.
    fn start_call(&self, cluster: &str, path: String, is_grpc: bool) -> Result<u32, Status> {
        let clusters = self.0.clusters.borrow();
        if !clusters.iter().any(|known| known == cluster) {
            return Err(match is_grpc {
                true => Status::PARSE_FAILURE,
                false => Status::BAD_ARGUMENT,
            });
        }
        let next = self.0.calls_started.get().wrapping_add(4);
        self.0.calls_started.set(next);
        let id = next | u32::from(is_grpc);
        self.0.calls.borrow_mut().push(Call {
            id,
            is_grpc,
            cluster: cluster.into(),
            path,
        });
        Ok(id)
    }

    /// Reads a map where the phase lets one.
    fn read<T>(&self, map: Map, read: impl FnOnce(&Fields) -> T) -> Result<T, Status> {
        if map == Map::HttpCall {
            return self
                .0
                .call_answer
                .borrow()
                .as_ref()
                .map(|(headers, _)| read(headers))
                .ok_or(Status::BAD_ARGUMENT);
        }
        let exchange = self.0.exchange.borrow();
        match (map, exchange.phase) {
            (_, Phase::Outside) => Err(Status::BAD_ARGUMENT),
            (Map::Request, _) => Ok(read(&exchange.request)),
            (_, Phase::ResponseHeaders | Phase::ResponseBody | Phase::Log) => {
                Ok(read(&exchange.response))
            }
            _ => Err(Status::BAD_ARGUMENT),
        }
    }

    /// Changes a map where the phase lets one.
    fn write(&self, map: Map, write: impl FnOnce(&mut Fields)) -> Result<(), Status> {
        let mut exchange = self.0.exchange.borrow_mut();
        match (map, exchange.phase) {
            (Map::Request, Phase::RequestHeaders | Phase::RequestBody) => {
                write(&mut exchange.request)
            }
            (Map::Response, Phase::ResponseHeaders | Phase::ResponseBody) => {
                write(&mut exchange.response)
            }
            _ => return Err(Status::BAD_ARGUMENT),
        }
        Ok(())
    }
}

impl fmt::Debug for NativeHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NativeHost")
    }
}

impl Host for NativeHost {
    fn log(&self, level: Level, message: &str) {
        self.0.log.borrow_mut().push((level, String::from(message)));
    }

    fn now_ns(&self) -> u64 {
        let now = self.0.now_ns.get();
        let step = self.0.clock_step_ns.get();
        self.0.now_ns.set(now.saturating_add(step));
        now
    }

    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let random = RandomState::new().build_hasher().finish().to_le_bytes();
            chunk
                .iter_mut()
                .zip(random)
                .for_each(|(byte, random)| *byte = random);
        }
    }

    #[expect(clippy::panic, reason = "a trap in a test is a failed test")]
    fn trap(&self) -> ! {
        panic!("the plugin trapped")
    }

    fn set_tick_period(&self, period_ms: u32) -> Result<(), Status> {
        self.0.tick_period_ms.set(period_ms);
        Ok(())
    }

    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Result<Vec<u8>, Status> {
        let slice = |bytes: &[u8]| bytes.iter().skip(start).take(max).copied().collect();
        let phase = self.0.exchange.borrow().phase;
        match (buffer, phase) {
            (Buffer::Configuration, _) => Ok(slice(&self.0.configuration.borrow())),
            (Buffer::HttpCallBody, _) => self
                .0
                .call_answer
                .borrow()
                .as_ref()
                .map(|(_, body)| slice(body))
                .ok_or(Status::NOT_FOUND),
            (Buffer::GrpcMessage, _) => match &*self.0.grpc_answer.borrow() {
                Some(Ok(message)) => Ok(slice(message)),
                _ => Err(Status::NOT_FOUND),
            },
            (Buffer::RequestBody, Phase::RequestBody)
            | (Buffer::ResponseBody, Phase::ResponseBody) => {
                Ok(slice(&self.0.exchange.borrow().body))
            }
            _ => Ok(Vec::new()),
        }
    }

    fn set_buffer(
        &self,
        buffer: Buffer,
        start: usize,
        size: usize,
        value: &[u8],
    ) -> Result<(), Status> {
        let mut exchange = self.0.exchange.borrow_mut();
        match (buffer, exchange.phase) {
            (Buffer::RequestBody, Phase::RequestBody)
            | (Buffer::ResponseBody, Phase::ResponseBody) => {}
            _ => return Err(Status::NOT_FOUND),
        }
        let body = &mut exchange.body;
        if start == 0 {
            let size = size.min(body.len());
            body.splice(..size, value.iter().copied());
        } else if start >= body.len() {
            body.extend_from_slice(value);
        } else {
            return Err(Status::BAD_ARGUMENT);
        }
        Ok(())
    }

    fn field_pairs(&self, map: Map) -> Result<Vec<u8>, Status> {
        let pairs = self.read(map, |fields| {
            encode(
                fields
                    .iter()
                    .map(|(name, value)| (name.as_slice(), value.as_slice())),
            )
        });
        Ok(pairs.unwrap_or_default())
    }

    fn field(&self, map: Map, name: &str) -> Result<Option<Vec<u8>>, Status> {
        self.read(map, |fields| {
            fields
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name.as_bytes()))
                .map(|(_, value)| value.clone())
        })
    }

    fn add_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        self.write(map, |fields| {
            fields.push((name.to_ascii_lowercase().into_bytes(), value.to_vec()))
        })
    }

    fn replace_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        let name = name.to_ascii_lowercase().into_bytes();
        self.write(map, |fields| {
            match fields.iter().position(|(known, _)| *known == name) {
                Some(at) => {
                    let mut index = 0;
                    fields.retain(|(known, _)| {
                        index += 1;
                        *known != name || index - 1 == at
                    });
                    if let Some(field) = fields.get_mut(at) {
                        field.1 = value.to_vec();
                    }
                }
                None => fields.push((name, value.to_vec())),
            }
        })
    }

    fn remove_field(&self, map: Map, name: &str) -> Result<(), Status> {
        self.write(map, |fields| {
            fields.retain(|(known, _)| !known.eq_ignore_ascii_case(name.as_bytes()))
        })
    }

    fn property(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let properties = if self.0.in_exchange.get() {
            &self.0.exchange.borrow().properties
        } else {
            &*self.0.plugin_properties.borrow()
        };
        Ok(properties.get(path).cloned())
    }

    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status> {
        let entry = (name.as_bytes().to_vec(), value.to_vec());
        if self.0.in_exchange.get() {
            self.0.exchange.borrow_mut().properties.extend([entry]);
        } else {
            self.0.plugin_properties.borrow_mut().extend([entry]);
        }
        Ok(())
    }

    fn shared_data(&self, key: &str) -> Result<Option<(Vec<u8>, u32)>, Status> {
        Ok(self.0.shared.borrow().get(key).cloned())
    }

    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        let mut shared = self.0.shared.borrow_mut();
        if shared
            .get(key)
            .is_some_and(|(_, version)| cas != 0 && *version != cas)
        {
            return Err(Status::CAS_MISMATCH);
        }
        let version = self.0.shared_version.get().wrapping_add(1);
        self.0.shared_version.set(version);
        shared.insert(String::from(key), (value.to_vec(), version));
        Ok(())
    }

    fn send_local_response(
        &self,
        status: u16,
        _details: &str,
        body: &[u8],
        pairs: &[u8],
    ) -> Result<(), Status> {
        let pairs =
            crate::fields::FieldPairs::parse(pairs.to_vec()).map_err(|_| Status::BAD_ARGUMENT)?;
        let headers = pairs
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
            .collect();
        let answer = LocalAnswer {
            status,
            headers,
            body: body.to_vec(),
        };
        self.0.exchange.borrow_mut().answer.get_or_insert(answer);
        Ok(())
    }

    fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        _: &[u8],
        _: u32,
    ) -> Result<u32, Status> {
        let header = |name: &str| {
            headers
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| *value)
        };
        let (Some(_), Some(path), Some(_)) =
            (header(":method"), header(":path"), header(":authority"))
        else {
            return Err(Status::BAD_ARGUMENT);
        };
        self.start_call(cluster, path.into(), false)
    }

    fn grpc_call(
        &self,
        cluster: &str,
        service: &str,
        method: &str,
        _: &[u8],
        _: u32,
    ) -> Result<u32, Status> {
        self.start_call(cluster, ["/", service, "/", method].concat(), true)
    }

    fn grpc_status(&self) -> Result<(u32, Vec<u8>), Status> {
        match &*self.0.grpc_answer.borrow() {
            Some(Err((status, message))) => Ok((*status, message.clone().into_bytes())),
            _ => Ok((0, Vec::new())),
        }
    }

    fn set_effective_context(&self, _: u32) -> Result<(), Status> {
        Ok(())
    }

    fn continue_request(&self) -> Result<(), Status> {
        Ok(())
    }

    fn call_foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        self.0.foreign.borrow().get(name).ok_or(Status::NOT_FOUND)?(arguments)
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        let mut metrics = self.0.metrics.borrow_mut();
        let at = metrics
            .iter()
            .position(|(known, ..)| known == name)
            .unwrap_or_else(|| {
                metrics.push((String::from(name), kind, 0));
                metrics.len() - 1
            });
        u32::try_from(at).map_err(|_| Status::INTERNAL_FAILURE)
    }

    fn increment_metric(&self, id: u32, offset: i64) -> Result<(), Status> {
        let mut metrics = self.0.metrics.borrow_mut();
        let (_, kind, value) = metrics.get_mut(id as usize).ok_or(Status::NOT_FOUND)?;
        match kind {
            MetricKind::Counter if offset <= 0 => return Err(Status::BAD_ARGUMENT),
            MetricKind::Histogram => return Err(Status::BAD_ARGUMENT),
            _ => *value = value.wrapping_add_signed(offset),
        }
        Ok(())
    }

    fn record_metric(&self, id: u32, recorded: u64) -> Result<(), Status> {
        let mut metrics = self.0.metrics.borrow_mut();
        let (_, kind, value) = metrics.get_mut(id as usize).ok_or(Status::NOT_FOUND)?;
        match kind {
            MetricKind::Counter => *value = value.wrapping_add(recorded), // as Envoy does
            _ => *value = recorded,
        }
        Ok(())
    }

    fn metric(&self, id: u32) -> Result<u64, Status> {
        match self.0.metrics.borrow().get(id as usize) {
            Some((_, MetricKind::Histogram, _)) => Err(Status::BAD_ARGUMENT),
            Some((.., value)) => Ok(*value),
            None => Err(Status::NOT_FOUND),
        }
    }
}
