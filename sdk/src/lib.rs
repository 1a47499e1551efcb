//! Portcullis SDK: write a security control once; run it in Envoy and in Portcullis.
//!
//! A control is a type that implements [`Control`]: it parses its configuration once, then looks at each exchange and
//! either lets it pass ([`Decision::Continue`]) or answers it ([`Decision::Respond`]). One macro, [`export!`], makes a
//! Proxy-Wasm module of it; [`testing`] runs its cases natively, without Wasm.
//!
//! What a control can rely on:
//!
//! 1. Header values and bodies are bytes. No function here panics on what a client sends.
//! 2. An [`Error`] is a refusal (500), never a pass.
//! 3. Each call that reaches the host says so in its documentation; nothing else does. A callback that the control's
//!    [`Metadata`] does not list is not exported, so the host never calls it.
//! 4. The state of an exchange lives in the exchange ([`Control::State`]), never in a map keyed by an id.
//!
//! Order of the files, each using only those before it: `{limits, bounded_cache} < error < {fields, form} < {host, cookies, structured} < log < {connection,
//! foreign, metric, json} < {scope, json_text} < {shared_data, shared_store,
//! shared_counter, tree} < {decision, decision_id, callbacks} < enforcement <
//! filter < verified_claims < {request, http_call, grpc_call, plugin_context} < {response, body, exchange_log, configuration} < control < plugin < {contexts, export,
//! schema, testing}`.

mod async_control;
mod async_request;
mod body;
mod bounded_cache;
mod callbacks;
mod configuration;
mod connection;
mod contexts;
mod control;
mod cookies;
mod decision;
mod decision_id;
mod enforcement;
mod error;
mod exchange_log;
mod export;
mod fields;
mod filter;
mod foreign;
mod form;
mod grpc_call;
mod host;
mod http_call;
mod id_table;
mod json;
mod json_text;
mod limits;
mod log;
mod metric;
mod notes;
mod plugin;
mod plugin_context;
mod policy;
#[cfg(test)]
mod random;
mod request;
mod response;
mod schema;
mod scope;
mod shared_counter;
mod shared_data;
mod shared_store;
mod structured;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod tree;
mod verified_claims;

pub use async_control::{Async, AsyncControl};
pub use async_request::{AsyncRequest, CallResponse};
pub use body::Body;
pub use bounded_cache::BoundedCache;
pub use callbacks::Callbacks;
pub use configuration::ConfigError;
pub use connection::{Connection, TlsVersion};
pub use control::{Control, Metadata};
pub use cookies::Cookies;
pub use decision::{Decision, LocalResponse};
pub use error::{Error, Status};
pub use exchange_log::Log;
pub use fields::{CheckedHeader, FieldPairs};
pub use foreign::{Foreign, Verified};
pub use form::Form;
pub use grpc_call::{GrpcCallResponse, GrpcError};
pub use host::Level;
pub use http_call::{CallId, HttpCallResponse};
pub use json_text::{JsonPointer, JsonText};
pub use log::Field;
pub use metric::{Counter, Gauge, Histogram};
pub use plugin_context::PluginContext;
pub use request::{Held, Request};
pub use response::Response;
pub use shared_counter::SharedCounter;
pub use shared_data::{Cas, CasOutcome, SharedData};
pub use shared_store::{Change, SharedStore};
pub use verified_claims::VerifiedClaims;

/// All that a control's code names: `use portcullis_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Async, AsyncControl, AsyncRequest, Body, BoundedCache, CallId, CallResponse, Callbacks,
        Cas, CasOutcome, Change, ConfigError, Connection, Control, Cookies, Counter, Decision,
        Error, Field, FieldPairs, Foreign, Form, Gauge, GrpcCallResponse, GrpcError, Held,
        Histogram, HttpCallResponse, JsonPointer, JsonText, Level, LocalResponse, Log, Metadata,
        PluginContext, Request, Response, SharedCounter, SharedData, SharedStore, Status,
        TlsVersion, Verified, VerifiedClaims, export, policy,
    };
}

// What a control's own manifest then need not name.
pub use {schemars, serde, serde_json, sfv};

/// What [`export!`] expands to. Not for use by hand.
#[doc(hidden)]
pub mod export_parts {
    pub use crate::contexts::Contexts;
    pub use crate::enforcement::Flow;
    pub use crate::export::{action, enter, section, section_len};
    pub use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
    pub use crate::host::ActiveHost;
    pub use crate::plugin::{Exchange, Plugin};
    pub use crate::policy::{ControlSet, Member, Policy, PolicyExchange, metadata};
    #[cfg(target_arch = "wasm32")]
    pub use crate::{
        export::HOST,
        host::{allocate, construct},
        schema::schema,
    };
}
