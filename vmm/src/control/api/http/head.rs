//! The head of a request: the request line, and those of its fields that say where the body ends and what becomes of the
//! connection.

use std::str;

use super::{MAX_BODY, Refusal};

/// Most fields of a request.
const MAX_FIELDS: usize = 64;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The request's method.
    pub method: Method,
    /// Its target: an absolute path without the query.
    pub path: String,
    /// Bytes of the head itself.
    pub length: usize,
    /// Bytes of the body, at most [`MAX_BODY`].
    pub body_length: usize,
    /// The client waits for an interim answer before it sends the body.
    pub expects_continue: bool,
    /// Another request may follow on the connection.
    pub keep_alive: bool,
}

/// A method (RFC 9110, section 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: as GET, without the body of the answer.
    Head,
    /// POST.
    Post,
    /// Any other.
    Other(String),
}

/// Reads the head that `bytes` begin with; none if it is not complete yet.
///
/// # Errors
/// For a head after which nobody can tell where the next request begins, or that asks for what this server does not do.
pub fn parse(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error)),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::new(400, "the request line is not complete"));
    };
    let fields = Fields(request.headers);
    fields.check_host(version)?;
    let body_length = fields.body_length()?;
    Ok(Some(Head {
        method: method.into(),
        path: path(target)?.to_owned(),
        length,
        body_length,
        expects_continue: fields.expects_continue(version)?,
        keep_alive: version == 1 && !fields.has("connection", "close"),
    }))
}

/// The refusal of bytes in which httparse finds no request.
fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::new(431, format!("more than {MAX_FIELDS} header fields")),
        httparse::Error::Version => Refusal::new(505, "HTTP/1.1 is spoken here"),
        error => Refusal::new(400, format!("not a request of HTTP/1.1: {error}")),
    }
}

/// The path in a request target: the target itself, or that of a URL (RFC 9112, section 3.2).
fn path(target: &str) -> Result<&str, Refusal> {
    let origin = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    let path = origin.split(['?', '#']).next().unwrap_or_default();
    if path.starts_with('/') { Ok(path) } else { Err(Refusal::new(400, "the request target is not a path")) }
}

/// The fields of a head.
struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// Whether a field that is a list has this member.
    fn has(&self, name: &'static str, member: &str) -> bool {
        let mut members = self.values(name).flat_map(|value| value.split(|&byte| byte == b','));
        members.any(|given| given.trim_ascii().eq_ignore_ascii_case(member.as_bytes()))
    }

    /// A request of HTTP/1.1 names its host, once (RFC 9112, section 3.2). Which one is no matter here.
    fn check_host(&self, version: u8) -> Result<(), Refusal> {
        match self.values("host").count() {
            1 => Ok(()),
            0 if version == 0 => Ok(()),
            count => Err(Refusal::new(400, format!("{count} Host fields where there must be one"))),
        }
    }

    /// Where the body ends (RFC 9112, section 6.3). What can be read in two ways is refused.
    fn body_length(&self) -> Result<usize, Refusal> {
        let mut lengths = self.values("content-length");
        let (first, second) = (lengths.next(), lengths.next());
        if self.values("transfer-encoding").next().is_some() {
            if first.is_some() {
                return Err(Refusal::new(400, "Content-Length and Transfer-Encoding together"));
            }
            return Err(Refusal::new(411, "a body needs a Content-Length; Transfer-Encoding is not supported"));
        }
        let Some(text) = first else { return Ok(0) };
        if second.is_some() {
            return Err(Refusal::new(400, "Content-Length is given twice"));
        }
        if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
            return Err(Refusal::new(400, "Content-Length is not a number"));
        }
        // A number that does not fit is too large as well.
        let length = str::from_utf8(text).ok().and_then(|digits| digits.parse().ok()).unwrap_or(usize::MAX);
        if length > MAX_BODY {
            return Err(Refusal::new(413, format!("a body has at most {MAX_BODY} bytes")));
        }
        Ok(length)
    }

    /// Whether the client waits for `100 Continue`; there is no other expectation (RFC 9110, section 10.1.1).
    fn expects_continue(&self, version: u8) -> Result<bool, Refusal> {
        let mut expectations = self.values("expect");
        match expectations.next() {
            None => Ok(false),
            Some(value) if value.trim_ascii().eq_ignore_ascii_case(b"100-continue") => Ok(version == 1),
            Some(_) => Err(Refusal::new(417, "the only expectation that can be met is 100-continue")),
        }
    }
}

impl From<&str> for Method {
    fn from(text: &str) -> Self {
        match text {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            other => Self::Other(other.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
