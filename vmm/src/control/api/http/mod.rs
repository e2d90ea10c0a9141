//! HTTP/1.1 (RFC 9110, RFC 9112) as far as a control socket needs it, on a connection whose other end may do anything.
//!
//! httparse reads the head of a request. Everything else is here: how long it may be, how long it may take, where the body
//! ends, and when the connection does.

mod answer;
mod connection;
mod head;

pub use answer::{Answer, Refusal};
pub use connection::{Connection, Operations};
pub use head::{Head, Method, parse};

use std::time::Duration;

/// Longest head of a request in bytes: request line and fields.
pub const MAX_HEAD: usize = 8 << 10;
/// Longest body in bytes.
pub const MAX_BODY: usize = 64 << 10;
/// How long a request may take from the end of the one before it to its own last byte, and an answer until it is taken.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a client may go on sending what is not wanted, so that it finds the answer and not a broken connection.
pub const LINGER: Duration = Duration::from_millis(500);
