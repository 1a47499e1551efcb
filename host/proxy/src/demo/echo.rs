//! The demo's upstream: answers every request with what it saw, as JSON.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// A bound listener; connections are served once [`Echo::start`] is called.
#[derive(Debug)]
pub struct Echo {
    listener: std::net::TcpListener,
}

impl Echo {
    /// Binds `address`; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    ///
    /// No thread or event loop can be had.
    pub fn start(self) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = move || {
            let tasks = tokio::task::LocalSet::new();
            let served = tasks.block_on(&runtime, accept(self.listener));
            if let Err(error) = served {
                tracing::error!(%error, "the echo upstream has stopped");
            }
        };
        std::thread::Builder::new()
            .name("echo".into())
            .spawn(serve)?;
        Ok(())
    }
}

async fn accept(listener: std::net::TcpListener) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        // A connection that is gone before it is accepted is its client's loss.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::task::spawn_local(async move {
            // The proxy sees the same error on its end, and says so.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let mut body_bytes = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { break };
        body_bytes = body_bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
    }
    let seen = json!({
        "method": head.method.as_str(),
        "path": head.uri.to_string(),
        "headers": headers(&head.headers),
        "body_bytes": body_bytes,
    });
    let mut text = serde_json::to_string_pretty(&seen).unwrap_or_default();
    text.push('\n');
    let mut response = Response::new(Full::from(text));
    let names = response.headers_mut();
    names.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    // Something for security-headers to strip.
    names.insert(header::SERVER, header::HeaderValue::from_static("echo/1.0"));
    names.insert(
        "x-powered-by",
        header::HeaderValue::from_static("portcullis demo"),
    );
    Ok(response)
}

/// Names with their value, or the list of their values. Bytes that are not UTF-8 are shown as U+FFFD.
fn headers(map: &HeaderMap) -> Value {
    let value = |name: &header::HeaderName| {
        let mut values = map.get_all(name).iter();
        let mut texts = values
            .by_ref()
            .map(|value| Value::from(String::from_utf8_lossy(value.as_bytes())));
        match (texts.next(), texts.next()) {
            (Some(first), None) => first,
            (first, second) => first.into_iter().chain(second).chain(texts).collect(),
        }
    };
    Value::Object(
        map.keys()
            .map(|name| (name.to_string(), value(name)))
            .collect(),
    )
}
