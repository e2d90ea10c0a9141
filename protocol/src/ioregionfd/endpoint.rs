//! A device's end of an ioregionfd, served by a thread of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use outrigger_process::crew::{self, Job, Role};

use super::responder::{Handler, serve};
use super::socket::SocketType;
use crate::foreign::ForeignFd;

/// A socket pair, one end of which a thread serves, while the other is for the client:
///
/// ```no_run
/// use std::os::fd::AsFd;
///
/// use outrigger_protocol::ioregionfd::{Endpoint, Handler, SocketType};
/// use outrigger_protocol::server::{IoFd, IoFdKind};
///
/// # fn offer(handler: impl Handler + Send + 'static) -> std::io::Result<()> {
/// let registers = Endpoint::start("registers", SocketType::Stream, handler)?;
/// // What `Device::io_fds` returns.
/// let kind = IoFdKind::Ioregionfd { user_data: 0, posted_writes: false };
/// let io_fd = IoFd { offset: 0x1000, size: 0x1000, kind, pio: false, fd: registers.as_fd() };
/// # drop(io_fd);
/// # Ok(())
/// # }
/// ```
///
/// A client can keep its descriptors for as long as it likes. Make new endpoints for each client
/// ([`crate::server::Device::connected`]), and drop those of a client that has left. Dropping an endpoint ends the
/// connection for both sides and joins the thread: no access is executed after that. Do not drop one while you hold a
/// lock that its handler takes: that is a deadlock.
#[derive(Debug)]
pub struct Endpoint {
    /// The client may have sent descriptors that are never received, and are closed with it.
    ours: Arc<ForeignFd>,
    theirs: OwnedFd,
    job: Option<Job>,
}

impl Endpoint {
    /// Starts a thread of this name (the kernel keeps 15 bytes of it) in which `handler` executes the accesses. A
    /// malformed command ends the connection.
    ///
    /// # Errors
    /// The system refuses a socket pair or a thread.
    pub fn start(name: &str, kind: SocketType, mut handler: impl Handler + Send + 'static) -> io::Result<Self> {
        let (ours, theirs) = kind.pair()?;
        let ours = Arc::new(ForeignFd::from(ours));
        // Also when the handler panics.
        let socket = HangUp(Arc::clone(&ours));
        let of = name.to_owned();
        let job = crew::spawn(Role::Registers, name, move || {
            if let Err(error) = serve(socket.0.lend(), &mut handler) {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                log::warn!("{of}: ioregionfd: {error}{source}");
            }
        })?;
        Ok(Self { ours, theirs, job: Some(job) })
    }
}

/// Ends the connection when dropped.
struct HangUp(Arc<ForeignFd>);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// The client's end.
impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.theirs.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ours.hang_up();
        if let Some(job) = self.job.take() {
            // It has failed if the handler panicked, which has been reported.
            let _ = job.join();
        }
    }
}
