//! The answer on its way back through the filters: the upstream's, a filter's or the proxy's own, as `response` does it around sockets.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use portcullis_runtime::{Chain, Direction, HttpStream};

use super::UpstreamAnswer;
use super::explanation::Outcome;
use super::phase::Settled;
use super::report;
use super::run::Run;
use crate::fields::{HttpFields, Pseudo};
use crate::forwarded;
use crate::limits::LOCAL_RESPONSES_MAX;
use crate::local::Problem;

impl Run<'_> {
    /// The upstream's answer, as it was given beforehand.
    pub(super) fn relay(&mut self, http: &mut HttpStream, filters: &Chain) -> Outcome {
        let UpstreamAnswer {
            status,
            mut headers,
            mut body,
        } = self.question.upstream.clone();
        // RFC 9110 §9.3.2, §15.3.5, §15.4.5: no body follows, and the length is that of what would.
        let has_none = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if !headers.contains_key(header::CONTENT_LENGTH) && !has_none {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if has_none || self.question.method == Method::HEAD {
            body = Bytes::new();
        }
        forwarded::remove_hop_by_hop(&mut headers, false);
        headers.remove(header::TE);
        let pseudo = Pseudo::Response { status };
        let mut body = Some(body);
        match self.pass_head(http, HttpFields { pseudo, headers }, &mut body) {
            Settled::Passed => {}
            Settled::Respond => return self.respond(http, filters),
            Settled::Reset => return self.reset(),
            Settled::Held => return self.held(),
        }
        let Some((status, headers)) = report::head_of(http) else {
            return self.reset();
        };
        match self.body(http, filters, Direction::Response, body) {
            Ok(body) => self.answered("the upstream".into(), status, &headers, &body),
            Err(Settled::Held) => self.held(),
            Err(_) => self.reset(),
        }
    }

    /// An answer of the proxy's own, through the response filters like an upstream's.
    pub(super) fn answer(
        &mut self,
        http: &mut HttpStream,
        filters: &Chain,
        problem: &Problem,
    ) -> Outcome {
        let (fields, body) = problem.write(&self.id, &self.question.method);
        let mut body = Some(body);
        match self.pass_head(http, fields, &mut body) {
            Settled::Passed => self.send("the proxy".into(), http, filters, body),
            Settled::Respond => self.respond(http, filters),
            Settled::Reset => self.reset(),
            Settled::Held => self.held(),
        }
    }

    fn pass_head(
        &mut self,
        http: &mut HttpStream,
        fields: HttpFields,
        body: &mut Option<Bytes>,
    ) -> Settled {
        {
            let mut exchange = http.exchange_mut();
            if let Pseudo::Response { status } = fields.pseudo {
                exchange.info.response_code = Some(status.as_u16());
            }
            exchange.response_headers = Some(Box::new(fields));
        }
        self.head(http, Direction::Response, body)
    }

    /// A filter's local response, through the filters before it.
    pub(super) fn respond(&mut self, http: &mut HttpStream, filters: &Chain) -> Outcome {
        for _ in 0..LOCAL_RESPONSES_MAX {
            let by = self.last_speaker();
            let mut body = Some(http.take_local_body());
            match self.head(http, Direction::Response, &mut body) {
                Settled::Passed => return self.send(by, http, filters, body),
                Settled::Respond => {}
                Settled::Held => return self.held(),
                Settled::Reset => break,
            }
        }
        self.reset()
    }

    /// The body of an answer that is here as a whole.
    fn send(
        &mut self,
        by: String,
        http: &mut HttpStream,
        filters: &Chain,
        body: Option<Bytes>,
    ) -> Outcome {
        let Some((status, mut headers)) = report::head_of(http) else {
            return self.reset();
        };
        let mut body = match self.body(http, filters, Direction::Response, body) {
            Ok(body) => body,
            Err(_) => return self.reset(),
        };
        let head = self.question.method == Method::HEAD;
        if !head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if head {
            body = Bytes::new();
        }
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONNECTION);
        self.answered(by, status, &headers, &body)
    }

    fn answered(
        &mut self,
        by: String,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Outcome {
        let mut answer = Response::new(body.clone());
        *answer.status_mut() = status;
        answer.headers_mut().clone_from(headers);
        self.traffic.answer = Some(answer);
        Outcome::Answer {
            by,
            status: status.as_u16(),
            headers: self.shown.list(headers),
            body: report::text(body),
        }
    }
}
