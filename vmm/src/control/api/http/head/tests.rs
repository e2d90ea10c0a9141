//! Every kind of head and what becomes of it, and heads of random bytes.

use proptest::prelude::*;

use super::super::MAX_HEAD;
use super::*;

fn complete(text: &str) -> Head {
    parse(text.as_bytes()).expect("a request").expect("a complete one")
}

fn refused(text: &str) -> u16 {
    parse(text.as_bytes()).expect_err("no request").status
}

#[test]
fn what_curl_sends_is_understood() {
    let text = "POST /v1/stop HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\
                Content-Length: 2\r\nContent-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n\r\n{}";
    let expected = Head {
        method: Method::Post,
        path: "/v1/stop".into(),
        length: text.len() - 2,
        body_length: 2,
        expects_continue: true,
        keep_alive: true,
    };
    assert_eq!(complete(text), expected);
    for length in 0..expected.length {
        assert_eq!(parse(&text.as_bytes()[..length]), Ok(None), "{length}");
    }
}

#[test]
fn the_target_is_a_path_or_a_url() {
    for (target, path) in [
        ("/v1/status", "/v1/status"),
        ("/v1/status?x=/y", "/v1/status"),
        ("http://localhost/v1/status?", "/v1/status"),
        ("HTTP://[::1]:80/a", "/a"),
        ("http://localhost", "/"),
    ] {
        assert_eq!(complete(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).path, path);
    }
    for target in ["*", "localhost:80", "ftp://x/y", "v1/status"] {
        assert_eq!(refused(&format!("OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\n")), 400, "{target}");
    }
}

#[test]
fn a_connection_is_kept_as_both_sides_want() {
    for (line, fields, keep_alive) in [
        ("GET / HTTP/1.1", "Host: x\r\n", true),
        ("GET / HTTP/1.1", "Host: x\r\nConnection: keep-alive\r\n", true),
        ("GET / HTTP/1.1", "Host: x\r\nconnection: TE , Close\r\n", false),
        ("GET / HTTP/1.0", "", false),
        ("GET / HTTP/1.0", "Connection: keep-alive\r\n", false),
    ] {
        assert_eq!(complete(&format!("{line}\r\n{fields}\r\n")).keep_alive, keep_alive, "{line} {fields}");
    }
}

#[test]
fn what_cannot_be_served_has_a_status() {
    let table = [
        ("GET /\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("G\u{0}T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{2}\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n", 413),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417),
    ];
    for (text, status) in table {
        assert_eq!(refused(text), status, "{text:?}");
    }
    let many = "x: y\r\n".repeat(MAX_FIELDS);
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")), 431);
    assert_eq!(complete("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n").body_length, MAX_BODY);
}

/// Pieces of requests, so that random ones come close to something.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"GET ".to_vec()),
        Just(b"POST /v1/stop HTTP/1.1\r\n".to_vec()),
        Just(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n".to_vec()),
        Just(b"HTTP/1.1".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"Host: localhost\r\n".to_vec()),
        Just(b"Content-Length: ".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Expect: 100-continue\r\n".to_vec()),
        Just(b"Connection: ".to_vec()),
        "[0-9]{1,24}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..24),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_head_a_refusal_or_a_wait(bytes in pieces()) {
        match parse(&bytes) {
            Ok(Some(head)) => {
                prop_assert!(head.length <= bytes.len());
                prop_assert!(head.body_length <= MAX_BODY);
                prop_assert!(head.path.starts_with('/'));
                // Bytes behind a head are no part of it, and nothing less is one.
                let again = parse(&bytes[..head.length]);
                prop_assert_eq!(again, Ok(Some(head.clone())));
                prop_assert_eq!(parse(&bytes[..head.length - 1]).ok().flatten(), None);
            }
            Ok(None) => {}
            Err(refusal) => {
                prop_assert!((400..=505).contains(&refusal.status));
                prop_assert!(!refusal.problem.contains('\n'));
            }
        }
    }

    #[test]
    fn a_head_is_found_wherever_it_is_cut(padding in "[a-z]{0,2000}", cut in 0_usize..MAX_HEAD) {
        let text = format!("GET /v1/status HTTP/1.1\r\nHost: x\r\nX: {padding}\r\n\r\nGET /");
        let whole = complete(&text);
        let cut = cut.min(text.len());
        let expected = (cut >= whole.length).then_some(whole);
        prop_assert_eq!(parse(&text.as_bytes()[..cut]), Ok(expected));
    }
}
