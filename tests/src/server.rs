//! Unix sockets whose servers misbehave, for `--device`.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

/// Listens on `name` in `directory` and hands the first connection to `serve`, on a thread of its own.
pub fn listen(directory: &Path, name: &str, serve: impl FnOnce(UnixStream) + Send + 'static) -> PathBuf {
    let path = directory.join(name);
    let listener = UnixListener::bind(&path).expect("the directory is ours");
    thread::spawn(move || {
        if let Ok((connection, _)) = listener.accept() {
            serve(connection);
        }
    });
    path
}

/// Closes the connection at once.
pub fn closes(connection: UnixStream) {
    drop(connection);
}

/// Answers with bytes that are no vfio-user message, and keeps the connection open.
pub fn answers_garbage(mut connection: UnixStream) {
    let mut request = [0; 16];
    let _ = connection.read_exact(&mut request);
    let _ = connection.write_all(&[0x5a; 4096]);
    reads_on(connection);
}

/// Answers the first message with a well-formed error reply (ENOTSUP), and keeps the connection open.
pub fn refuses(mut connection: UnixStream) {
    let mut header = [0; 16];
    if connection.read_exact(&mut header).is_ok() {
        // vfio-user header: the request's message id and command, 16 bytes, type reply with the error bit, errno 95.
        let mut reply = [0; 16];
        reply[..4].copy_from_slice(&header[..4]);
        reply[4] = 16;
        reply[8] = 0x21;
        reply[12] = 95;
        let _ = connection.write_all(&reply);
    }
    reads_on(connection);
}

/// Announces a reply of almost 4 GiB and sends little of it.
pub fn announces_too_much(mut connection: UnixStream) {
    let mut header = [0; 16];
    if connection.read_exact(&mut header).is_ok() {
        let mut reply = [0; 16];
        reply[..4].copy_from_slice(&header[..4]);
        reply[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        reply[8] = 1;
        let _ = connection.write_all(&reply);
    }
    reads_on(connection);
}

/// Reads whatever comes and never answers.
pub fn never_answers(connection: UnixStream) {
    reads_on(connection);
}

fn reads_on(mut connection: UnixStream) {
    let mut sink = [0; 4096];
    while matches!(connection.read(&mut sink), Ok(1..)) {}
}
