//! An HTTP server on a bare socket that does with each request what it is told, also what no HTTP library would do.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use rustls::ServerConfig;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// These bytes, and the connection stays.
    Answer(String),
    /// Closes with a reset before the request is read.
    Reset,
    /// Reads the request, says nothing.
    Hang,
    /// These bytes, and then nothing for ever.
    Stall(String),
    /// A byte of these from time to time.
    Drip(String),
}

/// An answer with a status and no body.
pub fn status(code: u16) -> Act {
    with(code, "")
}

/// An answer with more header lines.
pub fn with(code: u16, lines: &str) -> Act {
    Act::Answer(format!("HTTP/1.1 {code} Whatever\r\n{lines}Content-Length: 0\r\n\r\n"))
}

/// An answer with problem details (RFC 9457).
pub fn problem(code: u16, detail: &str) -> Act {
    let body = format!("{{\"title\":\"t\",\"detail\":\"{detail}\"}}");
    Act::Answer(format!(
        "HTTP/1.1 {code} Whatever\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Request line and header lines.
    pub head: String,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Seen {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// The server. When its acts are used up, it answers 201.
pub struct Wire {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    acts: Arc<Mutex<VecDeque<Act>>>,
}

impl Wire {
    pub async fn start(acts: Vec<Act>) -> Self {
        Self::with_tls(acts, None).await
    }

    pub async fn with_tls(acts: Vec<Act>, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            acts: Arc::new(Mutex::new(acts.into())),
        };
        let (seen, acts) = (Arc::clone(&wire.seen), Arc::clone(&wire.acts));
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, acts, acceptor) = (Arc::clone(&seen), Arc::clone(&acts), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve_plain(stream, &seen, &acts).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &seen, &acts).await;
                            }
                        }
                    }
                });
            }
        });
        wire
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve_plain(stream: TcpStream, seen: &Mutex<Vec<Seen>>, acts: &Mutex<VecDeque<Act>>) {
    let resets = matches!(acts.lock().unwrap().front(), Some(Act::Reset));
    if resets {
        acts.lock().unwrap().pop_front();
        // With unread bytes and no lingering the kernel sends a reset.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = stream.set_zero_linger();
        return;
    }
    serve(stream, seen, acts).await;
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    seen: &Mutex<Vec<Seen>>,
    acts: &Mutex<VecDeque<Act>>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        seen.lock().unwrap().push(request);
        let act = acts.lock().unwrap().pop_front();
        match act.unwrap_or_else(|| status(201)) {
            Act::Answer(bytes) => {
                if stream.write_all(bytes.as_bytes()).await.is_err() {
                    return;
                }
            }
            Act::Reset => return,
            Act::Hang => std::future::pending().await,
            Act::Stall(bytes) => {
                let _ = stream.write_all(bytes.as_bytes()).await;
                std::future::pending::<()>().await;
            }
            Act::Drip(bytes) => {
                for byte in bytes.bytes().cycle() {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// One request with a Content-Length, or none if the peer is gone.
async fn read<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<Seen> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let mut seen = Seen { head, body: Vec::new(), at: Instant::now() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    seen.body = buffer.drain(..length).collect();
    Some(seen)
}
