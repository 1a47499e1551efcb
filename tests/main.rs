//! The tests of the whole: everything that needs more than one of the parts.

mod ambiguous;
mod bad_policy;
mod bad_traffic;
mod behaviour;
mod cases;
mod cli;
mod envoy_batch;
mod examples;
mod export;
mod filters_only;
mod foreign;
mod go_guest;
mod grpc;
mod hostile;
mod hostile_modules;
mod languages;
mod mtls;
mod places;
mod probe;
mod served;
mod set_properties;
mod tcp;
mod tidy;
mod unread;
mod whole;
mod wycheproof;
