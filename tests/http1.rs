//! HTTP/1.1 written and read by hand, so that a test can send bytes that no good client would.

use std::io::{BufRead, Write};

use anyhow::{Context as _, Result, bail};

/// Header lines in the order of the wire; names as they came.
pub type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// A request, byte for byte.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` and its like.
    pub method: Vec<u8>,
    /// The path with its query, as it is to stand on the request line.
    pub path: Vec<u8>,
    /// The host, with a port where it has one.
    pub authority: Vec<u8>,
    /// Further headers.
    pub headers: Headers,
    /// The body; `None` sends neither body nor `content-length`.
    pub body: Option<Vec<u8>>,
}

impl Request {
    /// A GET of `path` at `example.test` without further headers.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self {
            method: b"GET".to_vec(),
            path: path.as_bytes().to_vec(),
            authority: b"example.test".to_vec(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.as_bytes().to_vec(), value.into()));
        self
    }

    /// The same as a POST with a body.
    #[must_use]
    pub fn post(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.method = b"POST".to_vec();
        self.body = Some(body.into());
        self
    }

    /// The request's head up to and with the empty line; `content-length` where there is a body.
    #[must_use]
    pub fn head(&self) -> Vec<u8> {
        let mut head = Vec::new();
        for part in [
            &self.method[..],
            b" ",
            &self.path,
            b" HTTP/1.1\r\nhost: ",
            &self.authority,
            b"\r\n",
        ] {
            head.extend_from_slice(part);
        }
        for (name, value) in &self.headers {
            for part in [&name[..], b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
        if let Some(body) = &self.body {
            head.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// Writes it all.
    ///
    /// # Errors
    /// When the other side does not take it.
    pub fn write(&self, to: &mut impl Write) -> Result<()> {
        let mut bytes = self.head();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        to.write_all(&bytes).context("cannot send the request")?;
        to.flush().context("cannot send the request")
    }
}

/// A whole response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers; names in lower case.
    pub headers: Headers,
    /// The body, unchunked.
    pub body: Vec<u8>,
    /// The trailers; names in lower case.
    pub trailers: Headers,
}

impl Answer {
    /// The first value of the header `name` (lower case), as text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        first(&self.headers, name)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn first(headers: &Headers, name: &str) -> Option<String> {
    headers
        .iter()
        .find(|(key, _)| key == name.as_bytes())
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

/// Reads one response to a request with `method`, skipping `100 Continue`.
///
/// # Errors
/// When the connection ends too early or what comes is no HTTP/1.1 response.
pub fn read_answer(from: &mut impl BufRead, method: &[u8]) -> Result<Answer> {
    let mut answer = read_head(from)?;
    let mut body = Vec::new();
    answer.trailers = read_body(from, &answer, method, &mut |bytes| {
        body.extend_from_slice(bytes)
    })?;
    answer.body = body;
    Ok(answer)
}

/// Reads the head of a response, skipping `100 Continue`; body and trailers are empty.
///
/// # Errors
/// When the connection ends too early or what comes is no HTTP/1.1 response.
pub fn read_head(from: &mut impl BufRead) -> Result<Answer> {
    loop {
        let line = read_line(from)?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let status: u16 = text
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| text.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status line: {text:?}"))?;
        let headers = read_headers(from)?;
        if status == 100 {
            continue;
        }
        return Ok(Answer {
            status,
            headers,
            ..Answer::default()
        });
    }
}

/// Hands the body that belongs to `head` to `sink`, piece by piece, and returns the trailers.
///
/// # Errors
/// When the body ends before its framing says so.
pub fn read_body(
    from: &mut impl BufRead,
    head: &Answer,
    method: &[u8],
    sink: &mut dyn FnMut(&[u8]),
) -> Result<Headers> {
    if method == b"HEAD" || head.status == 204 || head.status == 304 {
        return Ok(Headers::new());
    }
    if head
        .header("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        loop {
            let line = read_line(from)?;
            let text = String::from_utf8_lossy(&line).into_owned();
            let digits = text.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16)
                .with_context(|| format!("no chunk size: {text:?}"))?;
            if size == 0 {
                return read_headers(from);
            }
            pour(from, size, sink)?;
            if !read_line(from)?.is_empty() {
                bail!("a chunk is longer than it says");
            }
        }
    }
    if let Some(length) = head.header("content-length") {
        let length = length
            .parse()
            .with_context(|| format!("content-length {length:?}"))?;
        pour(from, length, sink)?;
    } else {
        loop {
            let bytes = from.fill_buf().context("cannot read the body")?;
            let length = bytes.len();
            if length == 0 {
                break;
            }
            sink(bytes);
            from.consume(length);
        }
    }
    Ok(Headers::new())
}

fn pour(from: &mut impl BufRead, mut left: u64, sink: &mut dyn FnMut(&[u8])) -> Result<()> {
    while left > 0 {
        let bytes = from.fill_buf().context("cannot read the body")?;
        if bytes.is_empty() {
            bail!("the body ends {left} bytes too early");
        }
        let length = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        sink(bytes.get(..length).unwrap_or_default());
        from.consume(length);
        left -= length as u64;
    }
    Ok(())
}

fn read_headers(from: &mut impl BufRead) -> Result<Headers> {
    let mut headers = Headers::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default();
        let value = parts
            .next()
            .with_context(|| format!("no header: {:?}", String::from_utf8_lossy(&line)))?;
        headers.push((name.to_ascii_lowercase(), value.trim_ascii().to_vec()));
    }
}

/// One line without its end.
fn read_line(from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line)
        .context("cannot read a line")?;
    if line.pop() != Some(b'\n') {
        bail!("the connection ends within the head");
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

/// Reads the head of a request: its first line and its headers; `None` when the client has gone.
///
/// # Errors
/// When the connection ends within the head or what comes is no request.
pub fn read_request_head(from: &mut impl BufRead) -> Result<Option<(String, Headers)>> {
    if from.fill_buf().context("cannot read a request")?.is_empty() {
        return Ok(None);
    }
    let line = String::from_utf8_lossy(&read_line(from)?).into_owned();
    Ok(Some((line, read_headers(from)?)))
}

/// Hands the body of a request with `headers` to `sink`, piece by piece, and returns the trailers.
///
/// # Errors
/// When the body ends before its framing says so.
pub fn read_request_body(
    from: &mut impl BufRead,
    headers: &Headers,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<Headers> {
    let framed = ["transfer-encoding", "content-length"]
        .iter()
        .any(|name| first(headers, name).is_some());
    if !framed {
        return Ok(Headers::new());
    }
    let head = Answer {
        status: 200,
        headers: headers.clone(),
        ..Answer::default()
    };
    read_body(from, &head, b"", sink)
}
