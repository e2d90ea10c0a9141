//! Messages that arrive together: where one begins in the receiver's buffer depends on those before it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;

use common::client;
use common::raw::*;

/// A mappable region of 64 KiB with two areas.
fn region_info() -> Vec<u8> {
    let info = [words(&[80, 0xf, 1, 32]), longs(&[0x10000, 0])].concat();
    let sparse = [words(&[1 | 1 << 16, 0, 2, 0]), longs(&[0x1000, 0x1000, 0x4000, 0x2000])].concat();
    [info, sparse].concat()
}

#[test]
fn a_description_is_understood_behind_a_request_of_any_length() {
    for length in 0..16 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let raw = Raw::server(theirs, "{}");
            let request = raw.receive().unwrap();
            // Refused, for nothing is mapped, and without a reply.
            let write = [longs(&[0, length]), vec![0; usize::try_from(length).unwrap()]].concat();
            let write = message(1, DMA_WRITE, COMMAND | NO_REPLY, &write);
            let reply = message(request.id, request.command, REPLY, &region_info());
            assert!(raw.send(&[write, reply].concat(), &[]));
            raw.receive()
        });
        let client = client(ours);
        let info = client.region_info(1);
        let info = info.unwrap_or_else(|error| panic!("behind {length} bytes of data: {error}"));
        assert_eq!((info.size, info.flags), (0x10000, 0xf));
        drop(client);
        assert!(server.join().unwrap().is_none());
    }
}
