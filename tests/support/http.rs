//! Plain requests, and all that the sink has.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// A GET over HTTP/1.0: status and body.
pub fn http_get(port: u16, path: &str) -> (u16, Vec<u8>) {
    let (head, body) = get(&format!("127.0.0.1:{port}"), path);
    (status(&head), body)
}

/// Sends a raw HTTP/1.0 request: status and body of the answer.
pub fn http(port: u16, request: &[u8]) -> (u16, Vec<u8>) {
    let (head, body) = exchange(&format!("127.0.0.1:{port}"), request);
    (status(&head), body)
}

/// What a sink lists at this URL, oldest first: page after page, as the answers say.
pub fn activities(url: &str) -> Vec<Value> {
    let (host, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a URL");
    let mut all = Vec::new();
    let mut next = Some(String::new());
    while let Some(query) = next {
        let (head, body) = get(host, &format!("/{path}{query}"));
        assert_eq!(status(&head), 200, "{head}");
        all.extend(serde_json::from_slice::<Vec<Value>>(&body).unwrap());
        next = next_page(&head);
    }
    all
}

/// The query of the next page, from the header Link (RFC 8288).
pub fn next_page(head: &str) -> Option<String> {
    let link = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("link").then(|| value.trim())
    })?;
    let query = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    Some(query.unwrap_or_else(|| panic!("{link}")).to_owned())
}

fn get(host: &str, path: &str) -> (String, Vec<u8>) {
    exchange(host, format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())
}

fn exchange(host: &str, request: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an HTTP answer");
    (String::from_utf8_lossy(&answer[..end]).into_owned(), answer[end + 4..].to_vec())
}

fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}
