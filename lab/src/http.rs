//! A small HTTP/1.1 client over any byte stream: one request, one response, then the connection ends.
//!
//! Ours rather than a library's, so that what the lab observes does not share code with what it observes.

use std::io::{self, Read, Write};

/// The largest response that is read, bytes.
const LIMIT: u64 = 256 << 20;

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value; `name` in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request and reads the response to its end.
///
/// # Errors
/// What the stream says; [`io::ErrorKind::UnexpectedEof`] when the response ends early, and
/// [`io::ErrorKind::InvalidData`] when it is not HTTP.
pub fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;
    let mut received = Vec::new();
    match stream.take(LIMIT).read_to_end(&mut received) {
        Ok(_) => {}
        // TLS without a closing alert: whether the response is whole is judged by its own framing.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    parse(&received)
}

/// Reads a response off all the bytes that came.
fn parse(received: &[u8]) -> io::Result<Response> {
    let end = find(received, b"\r\n\r\n").ok_or_else(early)?;
    let head = std::str::from_utf8(&received[..end]).map_err(|_| invalid("head is not UTF-8"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid("no HTTP/1.1 status line"))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &received[end + 4..];
    let mut response = Response {
        status,
        headers,
        body: Vec::new(),
    };
    response.body = if response
        .header("transfer-encoding")
        .is_some_and(|coding| coding.contains("chunked"))
    {
        unchunk(rest)?
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length
            .parse()
            .map_err(|_| invalid("content-length is not a number"))?;
        rest.get(..length).ok_or_else(early)?.to_vec()
    } else {
        rest.to_vec()
    };
    Ok(response)
}

fn unchunk(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = find(rest, b"\r\n").ok_or_else(early)?;
        let size = std::str::from_utf8(&rest[..line_end])
            .ok()
            .and_then(|line| usize::from_str_radix(line.split(';').next()?.trim(), 16).ok())
            .ok_or_else(|| invalid("chunk size is not a number"))?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(rest.get(..size).ok_or_else(early)?);
        rest = rest.get(size + 2..).ok_or_else(early)?;
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the response ended early")
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_by_its_own_framing() {
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd",
            Ok((200, "abc")),
        );
        check("HTTP/1.1 204 No Content\r\n\r\n", Ok((204, "")));
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n",
            Ok((200, "abcde")),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            Err(io::ErrorKind::UnexpectedEof),
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
            Err(io::ErrorKind::UnexpectedEof),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-",
            Err(io::ErrorKind::UnexpectedEof),
        );
        check("SSH-2.0-x\r\n\r\n", Err(io::ErrorKind::InvalidData));
    }

    fn check(received: &str, expected: Result<(u16, &str), io::ErrorKind>) {
        let got = parse(received.as_bytes()).map(|response| (response.status, response.text()));
        assert_eq!(
            got.map_err(|error| error.kind()),
            expected.map(|(status, body)| (status, body.to_owned()))
        );
    }
}
