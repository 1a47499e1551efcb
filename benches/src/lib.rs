//! What the load comparison is made of: peers (processes under test), an open-loop load, the accounting of their CPU time
//! and memory, and the report; and what `scaling` is made of: subjects with more and more of something, and the aims that need
//! no peer. The micro-benchmarks stand in `benches/`.

pub mod aims;
pub mod bed;
pub mod effects;
pub mod embedder;
pub mod envoy_filters;
pub mod figures;
pub mod growth;
pub mod guests;
pub mod headers;
pub mod issuer;
pub mod kind;
pub mod life;
mod limits;
pub mod load;
pub mod machine;
pub mod nginx;
pub mod peer;
pub mod plot;
pub mod policy;
pub mod process;
pub mod program;
pub mod ratios;
pub mod report;
pub mod service;
pub mod statistics;
pub mod subject;
pub mod upstream;
