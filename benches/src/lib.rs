//! What the load comparison is made of: peers (processes under test), an open-loop load, the accounting of their CPU time
//! and memory, and the report. The micro-benchmarks stand in `benches/`.

pub mod bed;
pub mod embedder;
pub mod issuer;
pub mod load;
pub mod peer;
pub mod process;
pub mod report;
pub mod statistics;
pub mod upstream;
