//! The tests of the whole: everything that needs more than one of the parts.

mod ambiguous;
mod bad_policy;
mod bad_traffic;
mod cases;
mod cli;
mod envoy_batch;
mod examples;
mod export;
mod filters_only;
mod go_guest;
mod hostile;
mod mtls;
mod places;
mod served;
mod set_properties;
mod tidy;
mod unread;
mod whole;
mod wycheproof;
