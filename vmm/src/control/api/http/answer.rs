//! Answers on a connection.

use std::fmt::Write;

use serde::Serialize;

use super::super::status::Problem;

/// An answer: a status and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    status: u16,
    /// The methods that there are, for 405.
    allow: Option<&'static str>,
    /// Ends with a line break, so that curl leaves the shell's prompt alone.
    body: String,
}

/// A request that is not met: the status, and why, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The problem, in words.
    pub problem: String,
    /// The methods that there are, for 405.
    pub allow: Option<&'static str>,
}

impl Refusal {
    /// A request that is answered with `status`.
    pub fn new(status: u16, problem: impl Into<String>) -> Self {
        Self { status, problem: problem.into(), allow: None }
    }
}

impl Answer {
    /// `value` as JSON.
    ///
    /// # Panics
    /// If it has no form in JSON; ours have.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let mut body = serde_json::to_string_pretty(value).expect("structures of text and numbers are JSON");
        body.push('\n');
        Self { status, allow: None, body }
    }

    /// The whole of it as it is sent. `with_body` is false for an answer to HEAD.
    pub(in super::super) fn to_bytes(&self, is_last: bool, with_body: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let _ = write!(text, "Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        if let Some(allow) = self.allow {
            let _ = write!(text, "Allow: {allow}\r\n");
        }
        if is_last {
            text.push_str("Connection: close\r\n");
        }
        text.push_str("\r\n");
        if with_body {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

impl From<Refusal> for Answer {
    fn from(Refusal { status, problem, allow }: Refusal) -> Self {
        Self { allow, ..Self::json(status, &Problem { error: problem }) }
    }
}

/// The words that go with a status (RFC 9110, section 15).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}
