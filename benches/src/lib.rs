//! What the load comparison is made of: peers (processes under test), an open-loop load, the accounting of their CPU time
//! and memory, and the report. The micro-benchmarks stand in `benches/`.

pub mod bed;
pub mod effects;
pub mod embedder;
pub mod envoy_filters;
pub mod figures;
pub mod headers;
pub mod issuer;
pub mod kind;
mod limits;
pub mod load;
pub mod machine;
pub mod nginx;
pub mod peer;
pub mod plot;
pub mod policy;
pub mod process;
pub mod ratios;
pub mod report;
pub mod statistics;
pub mod upstream;
