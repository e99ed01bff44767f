//! A milter of somebody else's, which lets everything pass: OpenDKIM, as far as Postfix can tell.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Listens until the process ends.
pub struct Neighbour {
    pub port: u16,
    messages: Arc<AtomicUsize>,
}

impl Neighbour {
    pub fn start() -> Self {
        Self::adding("")
    }

    /// One that puts a field above the header of each message: a filter that says what it found.
    pub fn adding(field: &str) -> Self {
        let field = field.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let messages = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&messages);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (counted, field) = (Arc::clone(&counted), field.clone());
                thread::spawn(move || serve(stream, &counted, &field));
            }
        });
        Self { port, messages }
    }

    /// How many messages it was shown to the end.
    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::SeqCst)
    }
}

/// Inserts a field at the top (`i`), as `Name: value`.
fn insertion(field: &str) -> Option<Vec<u8>> {
    let (name, value) = field.split_once(": ")?;
    let data = [b"i\0\0\0\0", name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat();
    Some([&u32::try_from(data.len()).ok()?.to_be_bytes()[..], &data].concat())
}

/// A frame is a length, a command, and data. Only version and the right to add fields are negotiated: every command, all
/// with answers.
fn serve(mut stream: TcpStream, messages: &AtomicUsize, field: &str) -> Option<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?];
        stream.read_exact(&mut frame).ok()?;
        let answer: &[u8] = match frame.first()? {
            b'O' => {
                let version = frame[4].min(6);
                &[0, 0, 0, 13, b'O', 0, 0, 0, version, 0, 0, 0, u8::from(!field.is_empty()), 0, 0, 0, 0]
            }
            b'D' | b'A' => &[],
            b'Q' => return None,
            b'E' => {
                messages.fetch_add(1, Ordering::SeqCst);
                if let Some(insertion) = insertion(field) {
                    stream.write_all(&insertion).ok()?;
                }
                &[0, 0, 0, 1, b'c']
            }
            _ => &[0, 0, 0, 1, b'c'],
        };
        stream.write_all(answer).ok()?;
    }
}
