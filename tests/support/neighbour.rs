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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let messages = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&messages);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let counted = Arc::clone(&counted);
                thread::spawn(move || serve(stream, &counted));
            }
        });
        Self { port, messages }
    }

    /// How many messages it was shown to the end.
    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::SeqCst)
    }
}

/// A frame is a length, a command, and data. Only the version is negotiated: no actions, every command, all with answers.
fn serve(mut stream: TcpStream, messages: &AtomicUsize) -> Option<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?];
        stream.read_exact(&mut frame).ok()?;
        let answer: &[u8] = match frame.first()? {
            b'O' => {
                let version = frame[4].min(6);
                &[0, 0, 0, 13, b'O', 0, 0, 0, version, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            b'D' | b'A' => &[],
            b'Q' => return None,
            b'E' => {
                messages.fetch_add(1, Ordering::SeqCst);
                &[0, 0, 0, 1, b'c']
            }
            _ => &[0, 0, 0, 1, b'c'],
        };
        stream.write_all(answer).ok()?;
    }
}
