//! The tests of the whole: everything that needs more than one of the parts.

mod bad_policy;
mod bad_traffic;
mod cases;
mod cli;
mod envoy_batch;
mod export;
mod foreign;
mod go_guest;
mod grpc;
mod hostile;
mod languages;
mod places;
mod probe;
mod served;
mod set_properties;
mod tcp;
mod tidy;
mod whole;
mod wycheproof;
