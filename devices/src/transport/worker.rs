//! The threads that move data, one per enabled queue.
//!
//! A worker is stopped by a flag and its own doorbell, and ends when no I/O refers to client memory any more; where its
//! queue is then, the [`super::journal`] says. I/O on regular files cannot be taken back once the kernel has begun it, so a worker may take any time
//! to end, and nobody waits for one while others are kept waiting: whoever told it to stop looks later, or sleeps on
//! [`Endings`]. Until then the worker keeps its own reference to client memory, so this process stays safe.

use std::fmt::Arguments;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::error;
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use outrigger_process::crew::{self, Role};
use outrigger_protocol::server::{Interrupts, MemoryError};

use super::journal::{Fence, Journal};
use super::queue::{Queue, QueueError};
use super::signals::Signals;

/// How long the client is kept waiting for a worker to end: less than it waits for the reply that hangs on it.
pub const STOP_DEADLINE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(8) };

/// The work of a queue's thread until it is told to stop. When it returns, no I/O may refer to client memory.
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

/// An order to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Go on.
    Work,
    /// Begin nothing more, finish what was begun, and return.
    Suspend,
    /// Return as soon as nothing refers to client memory: the driver has reset the queue, no result is of use any more.
    Abandon,
}

/// Counts the workers of a device that have ended, so that one can sleep until the next one has.
#[derive(Debug, Default)]
pub struct Endings {
    count: Mutex<u64>,
    more: Condvar,
}

impl Endings {
    /// How many have ended so far.
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until more than `seen` have ended; returns whether they have by the deadline.
    pub fn wait_beyond(&self, seen: u64, deadline: Instant) -> bool {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.more.wait_timeout_while(count, left, |count| *count <= seen);
        *waited.unwrap_or_else(PoisonError::into_inner).0 > seen
    }
}

/// Adds to [`Endings`] when it is dropped, by a panic as well.
struct Ending(Arc<Endings>);

impl Drop for Ending {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.more.notify_all();
    }
}

/// All that a worker needs besides its queue.
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
    /// Where its end is counted.
    pub endings: Arc<Endings>,
    /// Where its queue's state is.
    pub journal: Journal,
    /// The kernel is to hold this while it is at anything for this queue.
    pub fence: Option<Fence>,
    /// The queue was a predecessor's, which was killed at any moment.
    pub succeeds: bool,
}

/// A queue in service, on its worker's thread.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The rings.
    pub queue: Queue,
    context: Context,
    order: Arc<AtomicU8>,
}

impl ActiveQueue {
    /// Whether the worker must begin nothing more and return. To be asked before each request: a batch may be long.
    #[inline]
    pub fn stopping(&self) -> bool {
        self.order.load(Ordering::Acquire) >= Order::Suspend as u8
    }

    /// Whether what has begun need not even be finished: see [`Order::Abandon`].
    #[inline]
    pub fn abandoned(&self) -> bool {
        self.order.load(Ordering::Acquire) >= Order::Abandon as u8
    }

    /// Becomes readable when there is work, or when the worker must stop.
    pub fn doorbell(&self) -> &EventFd {
        &self.context.doorbell
    }

    /// The kernel must hold this open as long as it is at anything for this queue that outlives the process, if there is to be
    /// a successor.
    pub fn fence(&self) -> Option<&Fence> {
        self.context.fence.as_ref()
    }

    /// Says in the log what the guest may be able to cause at will, within the limit of this device.
    pub fn warn(&self, line: Arguments<'_>) {
        self.context.signals.warn(line);
    }

    /// Keeps one of the words that the device has for itself in the journal: [`super::VirtioDevice::reactivate`] is told. A
    /// reset of the device makes it zero.
    pub fn keep(&self, word: usize, value: u64) {
        self.context.journal.set_device(word, value);
    }

    /// Waits for the doorbell, or for being told to stop.
    pub fn wait(&self) -> Result<(), WorkerError> {
        match self.interruptible(|| self.context.doorbell.read()) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(WorkerError::host("cannot wait for the doorbell")(errno.into())),
        }
    }

    /// Makes a system call that ends when the doorbell rings. The client can empty the doorbell in between: once it has
    /// left, the call fails with EINTR, and the worker finds that it is to stop.
    pub fn interruptible<T>(&self, call: impl FnOnce() -> T) -> T {
        self.context.interrupts.interruptible(call)
    }

    /// Shows the driver what was pushed, with one interrupt if it wants one.
    pub fn publish(&mut self) -> Result<(), MemoryError> {
        if self.queue.publish()? {
            self.context.signals.queue_used(&self.context.interrupts, self.context.index);
        }
        Ok(())
    }
}

/// A worker, as the threads that control it hold it.
#[derive(Debug)]
pub struct Worker {
    name: String,
    doorbell: Arc<EventFd>,
    interrupts: Arc<Interrupts>,
    order: Arc<AtomicU8>,
    finished: Receiver<()>,
}

/// Whether a worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not yet.
    No,
    /// It has.
    Yes,
    /// It has panicked.
    Panicked,
}

impl Worker {
    /// Starts a thread that does `work` on `queue`.
    pub fn start(context: Context, queue: Queue, work: Work) -> io::Result<Self> {
        let name = format!("{}-q{}", context.name, context.index);
        let (doorbell, interrupts) = (Arc::clone(&context.doorbell), Arc::clone(&context.interrupts));
        let order = Arc::new(AtomicU8::new(Order::Work as u8));
        let (sender, finished) = sync_channel(1);
        let ending = Ending(Arc::clone(&context.endings));
        let active = ActiveQueue { queue, context, order: Arc::clone(&order) };
        crew::spawn(Role::Queue, &name, move || {
            // Dropped in the reverse order: that it has ended is known when it has sent, or never will.
            let _ending = ending;
            let sender = sender;
            let mut active = active;
            let followed = if active.context.succeeds { active.queue.follow() } else { Ok(()) };
            if let Err(error) = followed.map_err(WorkerError::from).and_then(|()| work(&mut active)) {
                let Context { name, index, signals, interrupts, .. } = &active.context;
                let line = format_args!("{name} queue {index}: {error}");
                if error.is_disconnection() || active.abandoned() {
                    // The queue is sound and the serving thread is about to notice, or nobody uses it any more.
                    log::debug!("{line}");
                } else {
                    signals.fail(Some(interrupts), line);
                }
            }
            // Lets go of client memory before anyone hears of it.
            drop(active);
            // Nobody hears of it if the device is gone.
            let _ = sender.send(());
        })?;
        Ok(Self { name, doorbell, interrupts, order, finished })
    }

    /// Tells the worker to stop, without waiting. The strictest of several orders counts.
    pub fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Release);
        match self.interrupts.interruptible(|| self.doorbell.write(1)) {
            // A client that has left may have filled it: it rings.
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => error!("{}: cannot ring its doorbell: {errno}", self.name),
        }
    }

    /// Whether it has ended; an end is reported once.
    pub fn ended(&self) -> Ended {
        match self.finished.try_recv() {
            Ok(()) => Ended::Yes,
            Err(TryRecvError::Empty) => Ended::No,
            Err(TryRecvError::Disconnected) => Ended::Panicked,
        }
    }

    /// Waits for its end, when nobody else is kept waiting by that; returns whether it has ended by the deadline.
    pub fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        !matches!(self.finished.recv_timeout(left), Err(RecvTimeoutError::Timeout))
    }
}
