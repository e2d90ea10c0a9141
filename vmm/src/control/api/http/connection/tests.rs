//! A connection against clients that do anything, with a server that echoes bodies.

use std::io::{Read, Write};
use std::net::Shutdown as How;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// `POST /echo` answers with the body, unless that is `no`; `GET /void` with nothing. Counts what it has concluded.
#[derive(Default)]
struct Echo(AtomicUsize);

impl Operations for Echo {
    type Operation = ();

    fn find(&self, method: &Method, path: &str) -> Result<(), Refusal> {
        match (method, path) {
            (Method::Post, "/echo") | (Method::Get | Method::Head, "/void") => Ok(()),
            _ => Err(Refusal::new(404, "no")),
        }
    }

    fn perform(&self, (): &(), body: &[u8]) -> Result<Answer, Refusal> {
        if body == b"no" {
            return Err(Refusal::new(400, "no"));
        }
        Ok(Answer::json(200, &String::from_utf8_lossy(body)))
    }

    fn conclude(&self, (): &()) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A client's end, and the server, which says at its end how many requests it has concluded.
fn start() -> (UnixStream, JoinHandle<usize>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connection = Connection::new(Arc::new(theirs.into())).unwrap();
    let serve = move || {
        let echo = Echo::default();
        connection.serve(&echo);
        echo.0.into_inner()
    };
    (ours, thread::spawn(serve))
}

/// Everything that is answered to `requests`, sent in pieces of these sizes.
fn answers(requests: &[u8], pieces: &[usize]) -> String {
    let (mut ours, server) = start();
    let mut reader = ours.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        // A reset comes after all there is to read.
        let _ = reader.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    });
    let mut rest = requests;
    let mut sizes = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(rest.len()).clamp(1, rest.len()));
        if ours.write_all(piece).is_err() {
            break;
        }
        rest = after;
    }
    let _ = ours.shutdown(How::Write);
    server.join().unwrap();
    reading.join().unwrap()
}

fn statuses(answers: &str) -> Vec<&str> {
    let lines = answers.split("\r\n").flat_map(|part| part.split('\n'));
    lines.filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|line| &line[..3]).collect()
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let requests = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na\
                    GET /none HTTP/1.1\r\nHost: x\r\n\r\n\
                    POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n\
                    POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nbc\
                    POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let answers = answers(requests.as_bytes(), &[]);
    assert_eq!(statuses(&answers), ["200", "404", "200", "200"], "{answers}");
    assert!(answers.contains("\"a\"\n") && answers.contains("\"\"\n") && answers.ends_with("\"bc\"\n"), "{answers}");
    assert_eq!(answers.matches("Connection: close").count(), 1, "{answers}");
}

/// A stop with a body that nobody understands is no stop.
#[test]
fn what_is_refused_is_not_concluded() {
    for (body, concluded) in [("no", 0), ("ok", 1)] {
        let (mut ours, server) = start();
        let head = "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n";
        ours.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        drop(ours);
        assert_eq!(server.join().unwrap(), concluded, "{text}");
    }
}

#[test]
fn an_answer_to_head_has_no_body() {
    let answers = answers(b"HEAD /void HTTP/1.1\r\nHost: x\r\n\r\nGET /void HTTP/1.0\r\n\r\n", &[]);
    assert_eq!(statuses(&answers), ["200", "200"]);
    assert_eq!(answers.matches("\"\"").count(), 1, "{answers}");
    assert_eq!(answers.matches("Content-Length: 3").count(), 2, "{answers}");
}

#[test]
fn a_client_that_waits_for_it_is_told_to_continue() {
    let (mut ours, server) = start();
    let head =
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    ours.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    ours.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    ours.write_all(b"hi").unwrap();
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\"hi\"\n"), "{text}");
    drop(ours);
    server.join().unwrap();
}

#[test]
fn a_body_that_nobody_wants_is_not_asked_for() {
    let text = answers(b"POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", &[]);
    assert_eq!(statuses(&text), ["404"]);
    assert!(text.contains("Connection: close"), "{text}");
}

#[test]
fn what_is_too_long_is_refused_and_the_client_reads_why() {
    let line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(MAX_HEAD));
    let fields = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    let fits = format!("GET /void HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD - 36));
    assert_eq!(fits.len(), MAX_HEAD);
    // More than the socket's buffers hold, so that the client is still writing when it is refused.
    let body = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    for (text, status) in [(line, "414"), (fields, "431"), (body, "413"), (fits, "200")] {
        assert_eq!(statuses(&answers(text.as_bytes(), &[])), [status]);
    }
}

#[test]
fn a_client_that_is_slow_is_told_so_and_one_that_is_silent_is_not() {
    for (text, status) in [
        ("", None),
        ("GET /", Some("408")),
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n", Some("408")),
    ] {
        // Before the server's own clock starts.
        let begun = Instant::now();
        let (mut ours, server) = start();
        ours.write_all(text.as_bytes()).unwrap();
        // A byte now and then does not help.
        let mut dripping = ours.try_clone().unwrap();
        let is_silent = text.is_empty();
        thread::spawn(move || {
            while !is_silent && begun.elapsed() < DEADLINE - Duration::from_secs(1) {
                thread::sleep(Duration::from_secs(1));
                let _ = dripping.write_all(b"x");
            }
        });
        let mut answer = String::new();
        ours.read_to_string(&mut answer).unwrap();
        assert_eq!(statuses(&answer).first().copied(), status);
        assert!(begun.elapsed() >= DEADLINE && begun.elapsed() < 2 * DEADLINE, "{:?}", begun.elapsed());
        drop(ours);
        server.join().unwrap();
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let (mut ours, server) = start();
    ours.set_write_timeout(Some(DEADLINE)).unwrap();
    let begun = Instant::now();
    let request = b"GET /void HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    while ours.write_all(&request).is_ok() {}
    server.join().unwrap();
    assert!(begun.elapsed() < 4 * DEADLINE, "{:?}", begun.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_requests_are_cut_the_answers_are_the_same(
        bodies in prop::collection::vec("[a-z\n]{0,300}", 0..6),
        pieces in prop::collection::vec(1_usize..200, 1..8),
    ) {
        let request = |body: &String| format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let requests: String = bodies.iter().map(request).collect();
        let whole = answers(requests.as_bytes(), &[]);
        prop_assert_eq!(whole.matches("HTTP/1.1 200 OK").count(), bodies.len());
        prop_assert_eq!(answers(requests.as_bytes(), &pieces), whole);
    }

    #[test]
    fn no_bytes_keep_a_connection(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        // The client has closed its side: whatever it has sent, the server ends.
        answers(&bytes, &[100]);
    }
}
