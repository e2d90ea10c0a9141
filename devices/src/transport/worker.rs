//! The threads that move data, one per enabled queue.
//!
//! A worker is stopped by a flag and its own doorbell, and hands back its [`QueueState`] when no I/O refers to client
//! memory any more. I/O on regular files cannot be taken back once the kernel has begun it, so stopping waits for it,
//! up to [`STOP_DEADLINE`]. A worker that takes longer is left alone: it keeps its own reference to the old mapping, so
//! this process stays safe, and its queue stays out of service.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use outrigger_protocol::server::{Interrupts, MemoryError};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Queue, QueueError, QueueState};
use super::signals::Signals;

/// How long stopping all workers of a device may take: less than a client waits for the reply that hangs on it.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// What a queue's thread does until it is told to stop. When it returns, no I/O may refer to client memory.
pub type Work = Box<dyn FnOnce(&mut ActiveQueue) -> Result<(), WorkerError> + Send>;

/// Why a queue's service ended.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The driver's doing.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The host's doing.
    #[error("{what}: {source}")]
    Host {
        /// The operation that failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<MemoryError> for WorkerError {
    fn from(error: MemoryError) -> Self {
        Self::Queue(error.into())
    }
}

impl WorkerError {
    /// Whether there is no client any more whose memory could be reached by messages.
    fn is_disconnection(&self) -> bool {
        matches!(self, Self::Queue(QueueError::Memory(MemoryError::Disconnected { .. })))
    }

    /// For `map_err` on a host operation.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// What a worker needs besides its queue.
#[derive(Debug)]
pub struct Context {
    /// For log lines and the thread's name.
    pub name: &'static str,
    /// Which queue.
    pub index: u16,
    /// Written when the driver made buffers available, and to stop the worker.
    pub doorbell: Arc<EventFd>,
    /// Interrupts.
    pub signals: Arc<Signals>,
    /// The client's eventfds.
    pub interrupts: Arc<Interrupts>,
}

/// A queue in service, on its worker's thread.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The rings.
    pub queue: Queue,
    context: Context,
    stop: Arc<AtomicBool>,
}

impl ActiveQueue {
    /// Whether the worker must finish what it has begun and return.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Becomes readable when there is work, or when the worker must stop.
    pub fn doorbell(&self) -> &EventFd {
        &self.context.doorbell
    }

    /// Waits for the doorbell, or for being told to stop.
    pub fn wait(&self) -> Result<(), WorkerError> {
        match self.context.doorbell.read() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                Err(WorkerError::Host { what: "cannot wait for the doorbell", source: error })
            }
            _ => Ok(()),
        }
    }

    /// Shows the driver what was pushed, with one interrupt if it wants one.
    pub fn publish(&mut self) -> Result<(), MemoryError> {
        if self.queue.publish()? {
            self.context.signals.queue_used(&self.context.interrupts, self.context.index);
        }
        Ok(())
    }
}

/// A running worker, as the serving thread holds it.
#[derive(Debug)]
pub struct Worker {
    name: String,
    doorbell: Arc<EventFd>,
    stop: Arc<AtomicBool>,
    finished: Receiver<QueueState>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread that does `work` on `queue`.
    pub fn start(context: Context, queue: Queue, work: Work) -> io::Result<Self> {
        let name = format!("{}-q{}", context.name, context.index);
        let doorbell = Arc::clone(&context.doorbell);
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, finished) = sync_channel(1);
        let mut active = ActiveQueue { queue, context, stop: Arc::clone(&stop) };
        let thread = Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = work(&mut active) {
                let Context { name, index, signals, interrupts, .. } = &active.context;
                let line = format_args!("{name} queue {index}: {error}");
                if error.is_disconnection() {
                    // The queue is sound. The serving thread is about to notice.
                    log::debug!("{line}");
                } else {
                    signals.fail(interrupts, line);
                }
            }
            let state = active.queue.state();
            // Lets go of client memory before the serving thread hears of it.
            drop(active);
            // Nobody hears of it if the serving thread has given up waiting.
            let _ = sender.send(state);
        })?;
        Ok(Self { name, doorbell, stop, finished, thread })
    }

    /// Tells the worker to stop, without waiting.
    pub fn begin_stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.doorbell.write(1) {
            error!("{}: cannot ring its doorbell: {error}", self.name);
        }
    }

    /// Stops the worker and returns where its queue is; none if it has not stopped by the deadline.
    pub fn stop(self, deadline: Instant) -> Option<QueueState> {
        self.begin_stop();
        match self.finished.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(state) => {
                // It has nothing left to do but to end.
                let _ = self.thread.join();
                Some(state)
            }
            Err(_) => {
                error!("{}: I/O did not finish in time; the queue is out of service", self.name);
                None
            }
        }
    }
}
