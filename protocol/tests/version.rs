//! `VFIO_USER_VERSION`, server: what it refuses, what it negotiates, and that it comes first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use common::Server;
use common::raw::*;
use outrigger_protocol::server::ServeError;

const JSON: &str = r#"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":false}}}"#;

/// The connection must be refused: an error reply, if any, and then the end.
fn refused(payload: &[u8]) -> ServeError {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    let id = raw.command(VERSION, COMMAND, payload, &[]);
    if let Some(reply) = raw.receive() {
        assert_eq!((reply.id, reply.command, reply.flags), (id, VERSION, REPLY | ERROR));
        assert_eq!((reply.error, reply.payload.len()), (EINVAL, 0));
        assert!(raw.receive().is_none());
    }
    server.ended().unwrap_err()
}

fn json(text: &str) -> Vec<u8> {
    version(0, 1, text)
}

#[test]
fn a_short_version_closes_the_connection() {
    for length in 0..4 {
        assert!(matches!(refused(&[0; 4][..length]), ServeError::NoVersion), "{length}");
    }
}

#[test]
fn a_version_beyond_the_limit_closes_the_connection() {
    assert!(matches!(refused(&vec![b' '; 8192]), ServeError::Receive(_)));
}

#[test]
fn text_that_is_not_one_nul_terminated_object_closes_the_connection() {
    let mut unterminated = json("{}");
    unterminated.pop();
    assert!(matches!(refused(&unterminated), ServeError::Capabilities(_)));
    for text in ["", "{", "[]", "{}\0{}", "\u{1}", "{\"capabilities\":1}", r#"{"capabilities":{"max_msg_fds":{}}}"#] {
        assert!(matches!(refused(&json(text)), ServeError::Capabilities(_)), "{text:?}");
    }
    let mut not_utf8 = json(r#"{"x":"y"}"#);
    *not_utf8.iter_mut().find(|byte| **byte == b'y').unwrap() = 0xff;
    assert!(matches!(refused(&not_utf8), ServeError::Capabilities(_)));
    let deep = "[".repeat(3000);
    assert!(matches!(refused(&json(&deep)), ServeError::Capabilities(_)));
}

#[test]
fn a_transfer_size_or_page_sizes_of_zero_close_the_connection() {
    for key in ["max_data_xfer_size", "pgsizes"] {
        let zero = json(&format!(r#"{{"capabilities":{{"{key}":0}}}}"#));
        assert!(matches!(refused(&zero), ServeError::Capabilities(_)), "{key}");
    }
}

#[test]
fn a_value_of_a_wrong_type_closes_the_connection_whichever_key_it_is() {
    for key in ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes"] {
        for value in ["null", "true", "\"1\"", "[1]", "{}", "1.5", "-1", "1e3", "18446744073709551616"] {
            let text = format!(r#"{{"capabilities":{{"{key}":{value}}}}}"#);
            assert!(matches!(refused(&json(&text)), ServeError::Capabilities(_)), "{text}");
        }
    }
    for text in [r#""twin_socket":1"#, r#""twin_socket":{"supported":1}"#, r#""write_multiple":"true""#] {
        let text = format!(r#"{{"capabilities":{{{text}}}}}"#);
        assert!(matches!(refused(&json(&text)), ServeError::Capabilities(_)), "{text}");
    }
}

#[test]
fn unknown_keys_are_ignored_whatever_they_hold() {
    // `migration` is from an older text; QEMU still sends it.
    for extra in [r#""migration":{"pgsize":4096,"max_bitmap_size":268435456}"#, r#""migration":[]"#, r#""x":null"#] {
        let server = Server::start();
        let mut raw = Raw::new(server.connect());
        raw.succeed(VERSION, &json(&format!(r#"{{"capabilities":{{{extra}}},"y":[{{}}]}}"#)), &[]);
        raw.alive();
    }
}

#[test]
fn another_major_version_closes_the_connection() {
    assert!(matches!(refused(&version(1, 0, "{}")), ServeError::Major(1)));
    assert!(matches!(refused(&version(u16::MAX, 1, "{}")), ServeError::Major(u16::MAX)));
}

#[test]
fn descriptors_with_the_version_close_the_connection() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    let own = fd(&raw.stream);
    raw.command(VERSION, COMMAND, &json("{}"), &[own]);
    raw.closed();
    assert!(matches!(server.ended(), Err(ServeError::NoVersion)));
}

#[test]
fn anything_else_as_the_first_message_closes_the_connection() {
    for (command, flags) in [(GET_INFO, COMMAND), (RESET, NO_REPLY), (0, COMMAND), (999, COMMAND), (VERSION, REPLY)] {
        let server = Server::start();
        let mut raw = Raw::new(server.connect());
        raw.command(command, flags, &[0; 16], &[]);
        raw.closed();
        assert!(matches!(server.ended(), Err(ServeError::NoVersion)), "{command}");
    }
}

#[test]
fn a_client_that_leaves_before_its_version_is_no_error() {
    let server = Server::start();
    drop(server.connect());
    server.ended().unwrap();
    Raw::client(server.connect()).alive();
}

/// As a VMM does whose run fails for another device meanwhile.
#[test]
fn a_client_that_leaves_before_it_is_answered_is_no_error() {
    let server = Server::start();
    let mut stream = server.connect();
    stream.shutdown(std::net::Shutdown::Read).unwrap();
    stream.write_all(&message(1, VERSION, 0, &version(0, 1, "{}"))).unwrap();
    drop(stream);
    assert!(matches!(server.ended(), Ok(())));
}

#[test]
fn the_reply_is_version_0_1_with_our_capabilities_and_no_twin_socket_unasked() {
    let server = Server::start();
    let reply = Raw::new(server.connect()).succeed(VERSION, &json(JSON), &[]);
    assert_eq!((reply.payload[0], reply.payload[2]), (0, 1));
    let (&nul, text) = reply.payload[4..].split_last().unwrap();
    assert_eq!((nul, reply.fds.len()), (0, 0));
    let value: serde_json::Value = serde_json::from_slice(text).unwrap();
    let capabilities = &value["capabilities"];
    assert_eq!(capabilities["max_msg_fds"], 8, "no more than was proposed");
    assert_eq!(capabilities["max_data_xfer_size"], 1 << 20);
    assert_eq!(capabilities["max_dma_maps"], 65535);
    assert_eq!(capabilities["pgsizes"], 4096);
    assert_eq!(capabilities["write_multiple"], false);
    assert!(capabilities.get("twin_socket").is_none());
}

#[test]
fn a_client_that_can_use_a_twin_socket_is_given_one() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    let reply = raw.succeed(VERSION, &json(r#"{"capabilities":{"twin_socket":{"supported":true}}}"#), &[]);
    let (_, text) = reply.payload[4..].split_last().unwrap();
    let value: serde_json::Value = serde_json::from_slice(text).unwrap();
    let twin = &value["capabilities"]["twin_socket"];
    assert_eq!((&twin["supported"], &twin["fd_index"]), (&true.into(), &0.into()));
    assert_eq!(reply.fds.len(), 1);
    raw.alive();
}

#[test]
fn a_client_that_takes_no_descriptors_is_given_no_twin_socket() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    let proposal = r#"{"capabilities":{"max_msg_fds":0,"twin_socket":{"supported":true}}}"#;
    let reply = raw.succeed(VERSION, &json(proposal), &[]);
    assert!(reply.fds.is_empty());
    assert!(!String::from_utf8(reply.payload[4..].to_vec()).unwrap().contains("twin_socket"));
    raw.alive();
}

#[test]
fn the_minor_version_is_at_most_what_was_proposed() {
    for (proposed, agreed) in [(0, 0), (1, 1), (7, 1)] {
        let server = Server::start();
        let reply = Raw::new(server.connect()).succeed(VERSION, &version(0, proposed, "{}"), &[]);
        assert_eq!(reply.payload[..4], [0, 0, agreed, 0]);
    }
}

#[test]
fn version_data_is_optional() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    raw.succeed(VERSION, &words(&[0x0001_0000]), &[]);
    raw.alive();
}

#[test]
fn without_a_reply_wanted_none_is_sent() {
    let server = Server::start();
    let mut raw = Raw::new(server.connect());
    raw.command(VERSION, NO_REPLY, &json("{}"), &[]);
    raw.alive();
}

#[test]
fn a_second_version_is_refused() {
    let server = Server::start();
    let mut raw = Raw::client(server.connect());
    raw.refused(EINVAL, VERSION, &json("{}"), &[]);
    raw.alive();
}
