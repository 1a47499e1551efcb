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
    pub(crate) answer: UpstreamAnswer,
}

/// Answers in their order.
#[derive(Debug, Default)]
pub(crate) struct Answers(Vec<Prepared>);

impl Answers {
    pub(crate) fn new(answers: Vec<Prepared>) -> Self {
        Self(answers)
    }

    /// Whether anything is known of a cluster.
    pub(super) fn has(&self, cluster: &str) -> bool {
        self.0.iter().any(|it| it.cluster == cluster)
    }

    /// The next answer that fits.
    pub(crate) fn take(&mut self, cluster: &str, path: &[u8]) -> UpstreamAnswer {
        let fits = |it: &Prepared| {
            it.cluster == cluster && it.path.as_ref().is_none_or(|wanted| *wanted == path)
        };
        let mut fitting = self.0.iter().enumerate().filter(|(_, it)| fits(it));
        let Some((index, first)) = fitting.next() else {
            // What Envoy answers to a call that times out.
            return UpstreamAnswer {
                status: StatusCode::GATEWAY_TIMEOUT,
                headers: HeaderMap::new(),
                body: Bytes::from_static(b"upstream request timeout"),
            };
        };
        let (answer, is_last) = (first.answer.clone(), fitting.next().is_none());
        if !is_last {
            self.0.remove(index);
        }
        answer
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
            answer: UpstreamAnswer {
                status: StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                body: Bytes::new(),
            },
        };
        let mut answers = Answers::new(vec![
            prepared(Some("/keys"), 200),
            prepared(Some("/keys"), 500),
            prepared(Some("/other"), 404),
        ]);
        assert!(answers.has("idp") && !answers.has("opa"));
        for (cluster, path, status) in [
            ("idp", "/keys", 200),
            ("idp", "/other", 404),
            ("idp", "/keys", 500),
            ("idp", "/keys", 500),
            ("idp", "/none", 504),
            ("opa", "/keys", 504),
        ] {
            let answer = answers.take(cluster, path.as_bytes());
            assert_eq!(answer.status.as_u16(), status, "{cluster}{path}");
        }
    }
}
