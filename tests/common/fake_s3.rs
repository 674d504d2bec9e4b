//! A server that speaks as much of S3 as a test wants: it keeps nothing, and answers as it is told.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use haul::store::{S3, S3Options};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What somebody asks.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Bucket and key, decoded.
    pub(crate) path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }
}

/// What it is told.
pub(crate) struct Response {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: String::new(), body: body.into() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Response {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }

    /// A no, with its reason where the method has room for one.
    pub(crate) fn error(status: u16, code: &str) -> Response {
        Response::new(status, format!("<Error><Code>{code}</Code></Error>"))
    }
}

/// Starts a server that answers with `answer`, and gives a connection to it that signs nothing. It
/// lives as long as the process.
pub(crate) fn serve(answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> S3 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || converse(stream, &*answer));
        }
    });
    S3::with(&S3Options { endpoint_url: Some(url), unsigned: true, ..S3Options::default() })
}

/// Answers one request after the other, until the other side has enough.
fn converse(stream: TcpStream, answer: &dyn Fn(&Request) -> Response) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        for line in lines.by_ref() {
            let line = line.ok()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query = query.map(|(name, value)| (decode(name), decode(value))).collect();
        let request = Request { method, path: decode(path), query, headers };
        let Response { status, headers, body } = answer(&request);
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n");
        writer.write_all(head.as_bytes()).ok()?;
        if request.method != "HEAD" {
            writer.write_all(&body).ok()?;
        }
    }
}

/// A page of a listing: keys with size and tag, and where more are to be had.
pub(crate) fn page(objects: &[(String, u64, String)], next: Option<&str>) -> Response {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut text = String::from("<ListBucketResult><EncodingType>url</EncodingType>");
    for (key, size, tag) in objects {
        let key = encoded(key);
        let _ = write!(
            text,
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;{tag}&quot;</ETag></Contents>"
        );
    }
    let _ = write!(text, "<IsTruncated>{}</IsTruncated>", next.is_some());
    if let Some(next) = next {
        let _ = write!(text, "<NextContinuationToken>{next}</NextContinuationToken>");
    }
    Response::new(200, text + "</ListBucketResult>")
}
