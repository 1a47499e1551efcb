//! Small guests in WAT, driven through the public interface with an in-memory embedder.
#![expect(
    clippy::unwrap_used,
    reason = "fixtures outside of test functions, which may panic as those do"
)]

mod across_vms;
mod bed;
mod bounds;
mod early_answers;
mod failure;
mod grpc;
mod headers_alone;
mod hostcalls;
mod isolation;
mod lifecycle;
mod modules;
mod phases;
mod recovery;
mod redis;
mod renewal;
mod shared;
mod tcp;
