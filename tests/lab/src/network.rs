//! Where the guest's loads find the host's side.

/// The host's address on the tap.
pub const HOST: &str = "192.168.78.1";
/// Takes everything until the end, and then answers one byte.
pub const SINK: u16 = 5001;
/// Sends as many bytes as it is told (little-endian, 64 bits).
pub const SOURCE: u16 = 5002;
/// Sends back each message of [`MESSAGE`] bytes.
pub const ECHO: u16 = 5003;
/// Counts datagrams.
pub const UDP_SINK: u16 = 5004;
/// Answers a byte with the count (little-endian, 64 bits) and starts anew.
pub const UDP_COUNT: u16 = 5005;
/// Bytes of a small message.
pub const MESSAGE: usize = 64;
