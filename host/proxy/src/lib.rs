//! The edge proxy behind the `portcullis` command.

pub mod export;
pub mod limits;
pub mod policy;
