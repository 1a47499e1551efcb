//! The edge proxy behind the `portcullis` command.
//!
//! [`policy`] reads what an operator writes; [`serve`] runs it. Sockets, TLS, HTTP and clocks are here and nowhere else in the workspace;
//! what a plugin sees and does is `portcullis_runtime`'s. In the order of a request:
//! `acceptor → tls → connection → request (head, path, forwarded, fields) → stream → reroute → forward → upstream → response → body`.

pub mod cli;
pub mod demo;
pub mod export;
pub mod fields;
pub mod foreign;
pub mod policy;
pub mod template;

mod acceptor;
mod access_log;
mod admin;
mod body;
mod callout;
mod canary;
mod cluster;
mod comparison;
mod connection;
mod crate_build;
mod digest;
mod edition;
mod embedder;
mod envoy_lint;
mod explain;
mod figures;
mod filtered;
mod forward;
mod forwarded;
mod front;
mod grpc;
mod head;
mod layout;
mod lent_thread;
mod limits;
mod local;
mod measurement;
mod module_cache;
mod modules;
mod oci;
mod path;
mod phase;
mod plan;
mod redis;
mod reload;
mod request;
mod reroute;
mod response;
mod serve;
mod spawn;
mod stats;
mod stream;
mod tcp;
mod tls;
mod trial;
mod upstream;
mod worker;
mod written;

pub use module_cache::DiskCache;
pub use serve::{Running, ServeError, ServeOptions, runtime, serve};
