//! A server that speaks as much of S3 as a test wants: it keeps nothing, and answers as it is told.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use haul::store::{S3, S3Options};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What somebody asks.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Bucket and key, decoded.
    pub(crate) path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// In short: `GET 4- if "tag"`, `PUT free`.
    pub(crate) fn brief(&self) -> String {
        let mut text = self.method.clone();
        if let Some(range) = self.header("range") {
            let _ = write!(text, " {}", range.trim_start_matches("bytes="));
        }
        if let Some(tag) = self.header("if-match") {
            let _ = write!(text, " if {tag}");
        }
        if self.header("if-none-match") == Some("*") {
            text.push_str(" free");
        }
        text
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }
}

/// What it is told.
#[derive(Clone)]
pub(crate) struct Response {
    status: u16,
    headers: String,
    body: Vec<u8>,
    end: End,
}

/// How an answer goes on after its head.
#[derive(Clone)]
enum End {
    /// With its body.
    Whole,
    /// With so many bytes of its body; then the connection is closed.
    Cut(usize),
    /// With its body, whose length nobody said; then the connection is closed.
    Closed,
    /// With its body in one chunk, after which the last one never comes.
    Unfinished,
    /// There is no head, and the connection is closed.
    HangUp,
    /// With whatever this writes; its head promises so many bytes.
    Own(usize, Arc<dyn Fn(&mut TcpStream) + Send + Sync>),
}

impl Response {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: String::new(), body: body.into(), end: End::Whole }
    }

    /// No answer: the connection is closed.
    pub(crate) fn hang_up() -> Response {
        Response { end: End::HangUp, ..Response::new(0, "") }
    }

    /// Closes the connection after so many bytes of the body.
    pub(crate) fn cut(self, at: usize) -> Response {
        Response { end: End::Cut(at), ..self }
    }

    /// Does not say how long the body is; it ends with the connection.
    pub(crate) fn until_closed(self) -> Response {
        Response { end: End::Closed, ..self }
    }

    /// Gives the whole body and does not say that this was all.
    pub(crate) fn unfinished(self) -> Response {
        Response { end: End::Unfinished, ..self }
    }

    /// Promises so many bytes, and leaves them to `write`.
    pub(crate) fn written_by(
        self,
        length: usize,
        write: impl Fn(&mut TcpStream) + Send + Sync + 'static,
    ) -> Response {
        Response { end: End::Own(length, Arc::new(write)), ..self }
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
    let url = start(usize::MAX, answer);
    S3::with(&S3Options { endpoint_url: Some(url), unsigned: true, ..S3Options::default() })
}

/// What a server was asked, in order and in short.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// A server that gives these answers, one after the other, whatever it is asked.
pub(crate) fn script(answers: Vec<Response>) -> (S3, Seen) {
    let seen = Seen::default();
    let asked = seen.clone();
    let s3 = serve(move |request| {
        let mut asked = asked.lock().unwrap();
        asked.push(request.brief());
        let next = answers.get(asked.len() - 1).cloned();
        next.unwrap_or_else(|| Response::error(400, "TheScriptHasEnded"))
    });
    (s3, seen)
}

/// Starts a server that takes so many connections and no more, and gives its address.
pub(crate) fn start(
    connections: usize,
    answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(connections) {
            let answer = answer.clone();
            std::thread::spawn(move || converse(stream, &*answer));
        }
    });
    url
}

/// Answers one request after the other, until the other side has enough.
fn converse(stream: TcpStream, answer: &dyn Fn(&Request) -> Response) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = reader.by_ref().lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        for line in lines {
            let line = line.ok()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query = query.map(|(name, value)| (decode(name), decode(value))).collect();
        let mut request = Request { method, path: decode(path), query, headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|length| length.parse().ok());
        request.body.resize(length.unwrap_or(0), 0);
        reader.read_exact(&mut request.body).ok()?;
        let Response { status, headers, body, end } = answer(&request);
        let length = match &end {
            End::HangUp => return None,
            End::Whole | End::Cut(_) => format!("Content-Length: {}\r\n", body.len()),
            End::Own(length, _) => format!("Content-Length: {length}\r\n"),
            End::Closed => "Connection: close\r\n".to_owned(),
            End::Unfinished => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        writer
            .write_all(format!("HTTP/1.1 {status} X\r\n{headers}{length}\r\n").as_bytes())
            .ok()?;
        match end {
            _ if request.method == "HEAD" => {}
            End::Whole => writer.write_all(&body).ok()?,
            End::Cut(at) => return writer.write_all(&body[..at]).ok().and(None),
            End::Closed => return writer.write_all(&body).ok().and(None),
            End::Unfinished => {
                let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
                return writer.write_all(&chunk).ok().and(None);
            }
            End::Own(_, write) => {
                write(&mut writer);
                return None;
            }
            End::HangUp => unreachable!("it has no head"),
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
