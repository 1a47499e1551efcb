//! The gRPC servers that a case's callouts are: one a cluster.

use std::collections::BTreeMap;

use anyhow::Result;
use portcullis_sdk::testing::{Callout, Value};
use portcullis_tests::grpc_upstream::{GrpcAnswer, GrpcUpstream};

/// By the cluster's name; callouts that are answered over HTTP are left alone.
pub(crate) fn servers(
    callouts: &[Callout],
    value: impl Fn(&Value) -> Result<Vec<u8>>,
) -> Result<Vec<(String, GrpcUpstream)>> {
    let mut answers: BTreeMap<&str, Vec<GrpcAnswer>> = BTreeMap::new();
    for callout in callouts {
        let Some(status) = callout.grpc_status else {
            continue;
        };
        let message = callout.body.as_ref().map(&value).transpose()?;
        answers
            .entry(&callout.cluster)
            .or_default()
            .push(GrpcAnswer {
                path: callout.path.clone(),
                message: message.unwrap_or_default(),
                status,
                status_message: callout.grpc_message.clone(),
            });
    }
    answers
        .into_iter()
        .map(|(cluster, answers)| Ok((cluster.to_owned(), GrpcUpstream::answering(answers)?)))
        .collect()
}
