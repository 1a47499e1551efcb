//! The edge proxy behind the `portcullis` command.

pub mod policy;
