//! Our client, and a server that does as it likes with the first request.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use outrigger_protocol::client::{Client, ClientError, Options};

use super::PATIENCE;
use super::memory::GuestMemory;
use super::raw::{Message, Raw};

/// A client whose server has negotiated, and then does this with the first request. `deadline` is that of requests: a thread that
/// negotiates may be slow to get a processor.
pub fn with_server(deadline: Duration, then: impl FnOnce(Raw, Message) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let raw = Raw::server(theirs, "{}");
        if let Some(request) = raw.receive() {
            then(raw, request);
        }
    });
    let options = Options { deadline: PATIENCE, ..Default::default() };
    let client = Client::new(ours, GuestMemory::new(0), &options).unwrap();
    client.set_deadline(deadline);
    (client, server)
}

/// The outcome of one call on a client whose server does this.
pub fn outcome<T>(
    call: impl FnOnce(&Client) -> Result<T, ClientError>,
    then: impl FnOnce(Raw, Message) + Send + 'static,
) -> Result<T, ClientError> {
    let (client, server) = with_server(PATIENCE, then);
    let result = call(&client);
    if let Err(error) = &result {
        let usable = matches!(error, ClientError::Refused { .. } | ClientError::Local { .. });
        assert_eq!(client.is_closed(), !usable, "{error:?}");
    }
    drop(client);
    server.join().unwrap();
    result
}

/// The server answers with this payload; the client must call it malformed.
#[track_caller]
pub fn malformed<T>(call: impl FnOnce(&Client) -> Result<T, ClientError>, payload: Vec<u8>) {
    let result = outcome(call, move |raw, request| {
        raw.answer(&request, &payload, &[]);
    });
    assert!(matches!(&result, Err(ClientError::Malformed { .. })), "{:?}", result.err());
}
