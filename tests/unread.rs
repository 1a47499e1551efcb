//! Bodies that nobody reads: they wait with their sender, not in the proxy's memory.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Result;
use portcullis_tests::raw_upstream::RawUpstream;

use crate::bad_traffic::scene;

const GIB: u64 = 1 << 30;
const CHUNK: usize = 256 * 1024;

/// What may be on its way from a sender to a receiver that reads nothing: the buffers of four sockets, which the kernel sizes, and ours.
const UNREAD_BYTES_MAX: u64 = 32 << 20;

/// How much of that may be ours: a read buffer and a write buffer of hyper on either side, 0.5 MiB each at most, and what the allocator keeps of
/// the sizes that they had on their way there.
const UNREAD_GROWTH_BYTES_MAX: u64 = 16 << 20;

/// How long a sender finds no room before it takes that for good.
const STUCK: Duration = Duration::from_secs(2);

/// Sends until nothing is taken any more. How much was.
fn flood(stream: &mut TcpStream) -> Result<u64> {
    stream.set_write_timeout(Some(STUCK))?;
    let chunk = vec![b'f'; CHUNK];
    let mut sent = 0_u64;
    while sent < GIB {
        match stream.write(&chunk) {
            Ok(bytes) => sent += bytes as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

#[test]
fn what_nobody_reads_stays_with_the_sender() -> Result<()> {
    let (tell, told) = mpsc::channel();
    let (keep, kept) = mpsc::channel::<()>();
    let kept = std::sync::Mutex::new(kept);
    let upstream = RawUpstream::start(move |line, _, stream| {
        let stream = stream.get_mut();
        if line.starts_with("GET /down") {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n")?;
            tell.send(flood(stream)?).ok();
        } else if line.starts_with("POST /up") {
            // Reads nothing until the test is over.
            kept.lock().ok().and_then(|kept| kept.recv().ok());
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            return Ok(true);
        }
        Ok(false)
    })?;
    let scene = scene(upstream.address())?;
    scene.serves()?;
    let before = scene.served.process.resident_bytes()?;
    let mut up = TcpStream::connect(scene.address)?;
    write!(
        up,
        "POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {GIB}\r\n\r\n"
    )?;
    let up_bytes = flood(&mut up)?;
    let mut down = TcpStream::connect(scene.address)?;
    down.write_all(b"GET /down HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let down_bytes = told.recv_timeout(Duration::from_secs(60))?;
    let grown = scene
        .served
        .process
        .resident_bytes()?
        .saturating_sub(before);
    assert!(
        up_bytes < UNREAD_BYTES_MAX && down_bytes < UNREAD_BYTES_MAX,
        "nobody reads, yet {} MiB went up and {} MiB down",
        up_bytes >> 20,
        down_bytes >> 20
    );
    assert!(
        grown < UNREAD_GROWTH_BYTES_MAX,
        "the proxy holds {} KiB that nobody reads",
        grown >> 10
    );
    drop(keep);
    drop((up, down));
    scene.serves()
}
