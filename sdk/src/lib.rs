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
//! Order of the files, each using only those before it: `limits < error < fields < host < log < {connection,
//! shared_data, foreign, metric, json} < tree < request < {response, body, exchange_log} < http_call < plugin_context
//! < {decision, decision_id, callbacks, configuration} < control < plugin < {dispatcher, export, schema, testing}`.

mod body;
mod callbacks;
mod configuration;
mod connection;
mod control;
mod decision;
mod decision_id;
#[cfg(target_arch = "wasm32")]
mod dispatcher;
mod error;
mod exchange_log;
mod export;
mod fields;
mod foreign;
mod host;
mod http_call;
mod json;
mod limits;
mod log;
mod metric;
mod plugin;
mod plugin_context;
#[cfg(test)]
mod random;
mod request;
mod response;
#[cfg(target_arch = "wasm32")]
mod schema;
mod shared_data;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod tree;

pub use body::Body;
pub use callbacks::Callbacks;
pub use configuration::ConfigError;
pub use connection::{Connection, TlsVersion};
pub use control::{Control, Metadata};
pub use decision::{Decision, LocalResponse};
pub use error::{Error, Status};
pub use exchange_log::Log;
pub use fields::{CheckedHeader, FieldPairs};
pub use foreign::{Foreign, Verified};
pub use host::Level;
pub use http_call::{CallId, HttpCallResponse};
pub use log::Field;
pub use metric::{Counter, Gauge, Histogram};
pub use plugin_context::PluginContext;
pub use request::Request;
pub use response::Response;
pub use shared_data::{Cas, CasOutcome, SharedData};

/// All that a control's code names: `use portcullis_sdk::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Body, CallId, Callbacks, Cas, CasOutcome, ConfigError, Connection, Control, Counter,
        Decision, Error, Field, FieldPairs, Foreign, Gauge, Histogram, HttpCallResponse, Level,
        LocalResponse, Log, Metadata, PluginContext, Request, Response, SharedData, Status,
        TlsVersion, Verified, export,
    };
}

// What a control's own manifest then need not name.
pub use {schemars, serde, serde_json};

/// What [`export!`] expands to. Not for use by hand.
#[doc(hidden)]
pub mod export_parts {
    #[cfg(target_arch = "wasm32")]
    pub use crate::dispatcher::initialize;
    pub use crate::export::{section, section_len};
    #[cfg(target_arch = "wasm32")]
    pub use crate::schema::schema;
}
