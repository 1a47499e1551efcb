//! What clusters answer, said beforehand.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::UpstreamAnswer;

/// What a cluster answers, once; the last that fits goes on being given.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// The cluster it is called by.
    pub(crate) cluster: String,
    /// Only to calls of this path.
    pub(crate) path: Option<Bytes>,
    /// The answer.
    pub(crate) answer: Said,
}

/// To which kind of call it is an answer.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Http(UpstreamAnswer),
    Grpc(GrpcAnswer),
}

/// How a gRPC call ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GrpcAnswer {
    /// 0 is OK; see the gRPC project's `statuscodes.md`.
    pub(crate) status: u32,
    /// What is said of another status.
    pub(crate) message: String,
    /// The message, where the status is 0.
    pub(crate) body: Bytes,
}

impl Said {
    fn http(&self) -> Option<&UpstreamAnswer> {
        match self {
            Self::Http(answer) => Some(answer),
            Self::Grpc(_) => None,
        }
    }

    fn grpc(&self) -> Option<&GrpcAnswer> {
        match self {
            Self::Grpc(answer) => Some(answer),
            Self::Http(_) => None,
        }
    }
}

/// Answers in their order.
#[derive(Debug, Default)]
pub(crate) struct Answers(Vec<Prepared>);

impl Answers {
    pub(crate) fn new(answers: Vec<Prepared>) -> Self {
        Self(answers)
    }

    /// Whether anything is known of what a cluster says to HTTP calls.
    pub(super) fn has_http(&self, cluster: &str) -> bool {
        self.0
            .iter()
            .any(|it| it.cluster == cluster && it.answer.http().is_some())
    }

    /// The same of gRPC calls.
    pub(crate) fn has_grpc(&self, cluster: &str) -> bool {
        self.0
            .iter()
            .any(|it| it.cluster == cluster && it.answer.grpc().is_some())
    }

    /// The next answer that fits an HTTP call.
    pub(crate) fn take_http(&mut self, cluster: &str, path: &[u8]) -> UpstreamAnswer {
        let fitting = self.take(cluster, path, |said| said.http().cloned());
        // What Envoy answers to a call that times out.
        fitting.unwrap_or_else(|| UpstreamAnswer {
            status: StatusCode::GATEWAY_TIMEOUT,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"upstream request timeout"),
        })
    }

    /// The next answer that fits a gRPC call of `/SERVICE/METHOD`.
    pub(crate) fn take_grpc(&mut self, cluster: &str, path: &[u8]) -> GrpcAnswer {
        let fitting = self.take(cluster, path, |said| said.grpc().cloned());
        // What Envoy ends a call with that times out.
        fitting.unwrap_or(GrpcAnswer {
            status: 4,
            ..GrpcAnswer::default()
        })
    }

    fn take<A>(
        &mut self,
        cluster: &str,
        path: &[u8],
        kind: impl Fn(&Said) -> Option<A>,
    ) -> Option<A> {
        let fits = |it: &Prepared| {
            it.cluster == cluster && it.path.as_ref().is_none_or(|wanted| *wanted == path)
        };
        let known = self.0.iter().enumerate().filter(|(_, it)| fits(it));
        let mut fitting = known.filter_map(|(index, it)| Some((index, kind(&it.answer)?)));
        let (index, answer) = fitting.next()?;
        if fitting.next().is_some() {
            self.0.remove(index);
        }
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_order_and_the_last_repeats() {
        let prepared = |path: Option<&'static str>, status: u16| Prepared {
            cluster: "idp".into(),
            path: path.map(|path| Bytes::from_static(path.as_bytes())),
            answer: Said::Http(UpstreamAnswer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            }),
        };
        let mut answers = Answers::new(vec![
            prepared(Some("/keys"), 200),
            prepared(Some("/keys"), 500),
            prepared(Some("/other"), 404),
        ]);
        assert!(answers.has_http("idp") && !answers.has_http("opa") && !answers.has_grpc("idp"));
        for (cluster, path, status) in [
            ("idp", "/keys", 200),
            ("idp", "/other", 404),
            ("idp", "/keys", 500),
            ("idp", "/keys", 500),
            ("idp", "/none", 504),
            ("opa", "/keys", 504),
        ] {
            let answer = answers.take_http(cluster, path.as_bytes());
            assert_eq!(answer.status.as_u16(), status, "{cluster}{path}");
        }
    }

    #[test]
    fn a_call_gets_an_answer_of_its_kind() {
        let grpc = GrpcAnswer {
            status: 7,
            message: "not you".into(),
            body: Bytes::new(),
        };
        let mut answers = Answers::new(vec![Prepared {
            cluster: "authz".into(),
            path: Some("/a.B/C".into()),
            answer: Said::Grpc(grpc.clone()),
        }]);
        assert!(answers.has_grpc("authz") && !answers.has_http("authz"));
        assert_eq!(answers.take_grpc("authz", b"/a.B/C"), grpc);
        assert_eq!(answers.take_grpc("authz", b"/a.B/D").status, 4);
        assert_eq!(answers.take_http("authz", b"/a.B/C").status, 504);
    }
}
