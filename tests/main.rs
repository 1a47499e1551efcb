//! The tests of the whole: everything that needs more than one of the parts.

mod bad_policy;
mod bad_traffic;
mod behaviour;
mod cases;
mod cli;
mod envoy_batch;
mod export;
mod go_guest;
mod hostile;
mod hostile_modules;
mod places;
mod served;
mod set_properties;
mod tidy;
mod whole;
mod wycheproof;
