//! What the tests share with the benches: stock Envoy, a client that sends what it is told to the byte, an
//! upstream that remembers what it saw, certificates, and child processes that never outlive the run.
//!
//! Everything stays on loopback, every port is chosen by the kernel, and nothing sleeps for time to pass:
//! what must become ready is polled with a bound.

pub mod assembly_script;
pub mod build_folder;
pub mod certificates;
pub mod child;
pub mod client;
pub mod envoy;
pub mod free_port;
pub mod golang;
pub mod grpc_upstream;
pub mod http1;
pub mod kubernetes_models;
pub mod raw_upstream;
pub mod redis_server;
pub mod registry_server;
pub mod report;
pub mod upstream;
pub mod zig;
