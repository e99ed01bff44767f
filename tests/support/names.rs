//! A name server of the tests: what it knows is a list, and it can be made to fail.
//!
//! In: names with TXT or A records. Out: answers by UDP (RFC 1035); a name that it does not know is none (NXDOMAIN).

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
};

/// How it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// SERVFAIL.
    Failing,
    /// Not at all.
    Silent,
}

#[derive(Clone, Debug)]
enum Data {
    Text(String),
    Address(Ipv4Addr),
}

#[derive(Default)]
struct Zone {
    records: Vec<(String, Data)>,
    mood: Mood,
    asked: Vec<String>,
}

/// What the server knows; a clone is the same.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<Zone>>);

impl Names {
    pub fn text(&self, name: &str, text: &str) -> &Self {
        self.add(name, Data::Text(text.to_owned()))
    }

    pub fn address(&self, name: &str, address: [u8; 4]) -> &Self {
        self.add(name, Data::Address(address.into()))
    }

    fn add(&self, name: &str, data: Data) -> &Self {
        self.0.lock().unwrap().records.push((name.to_owned(), data));
        self
    }

    pub fn set_mood(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    /// Names that somebody has asked for.
    pub fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().asked.clone()
    }

    /// Answers on this address until the process ends; port 0 is any.
    pub fn serve(&self, address: SocketAddr) -> SocketAddr {
        let socket = UdpSocket::bind(address).unwrap();
        let at = socket.local_addr().unwrap();
        let names = self.clone();
        thread::spawn(move || {
            let mut question = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut question) {
                if let Some(answer) = names.answer(&question[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        at
    }

    /// One question has one answer: header, the question again, and the records.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        const TXT: u8 = 16;
        const A: u8 = 1;
        let (mut labels, mut at) = (Vec::new(), 12);
        while let length @ 1.. = usize::from(*query.get(at)?) {
            labels.push(str::from_utf8(query.get(at + 1..at + 1 + length)?).ok()?.to_ascii_lowercase());
            at += 1 + length;
        }
        let (name, kind) = (labels.join("."), *query.get(at + 2)?);
        let question = query.get(12..at + 5)?;
        let mut zone = self.0.lock().unwrap();
        zone.asked.push(name.clone());
        let mut found = Vec::new();
        for (_, data) in zone.records.iter().filter(|(known, _)| *known == name) {
            match data {
                Data::Text(text) if kind == TXT => {
                    let strings = text.as_bytes().chunks(255);
                    let strings =
                        strings.map(|piece| [&[u8::try_from(piece.len()).unwrap()], piece].concat());
                    found.push((TXT, strings.collect::<Vec<_>>().concat()));
                }
                Data::Address(address) if kind == A => found.push((A, address.octets().to_vec())),
                _ => {}
            }
        }
        let below = format!(".{name}");
        let exists = zone.records.iter().any(|(known, _)| *known == name || known.ends_with(&below));
        let code = match zone.mood {
            Mood::Silent => return None,
            Mood::Failing => 2,
            Mood::Well if exists => 0,
            Mood::Well => 3,
        };
        if code != 0 {
            found.clear();
        }
        // An answer, with authority; recursion is as it was wished, and there.
        let flags = [0x84 | (query[2] & 1), 0x80 | code];
        let count = u16::try_from(found.len()).unwrap().to_be_bytes();
        let mut answer = [&query[..2], &flags, &[0, 1], &count, &[0; 4], question].concat();
        for (kind, data) in found {
            let length = u16::try_from(data.len()).unwrap().to_be_bytes();
            // The name of the question, class IN, a minute.
            answer.extend([&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60][..], &length, &data].concat());
        }
        Some(answer)
    }
}
