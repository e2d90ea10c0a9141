//! The state for a process that takes over a running device: plain words in memory that outlives this process.
//!
//! A device always keeps its journal. Without a client that offers memory for it, that is ordinary memory, so there is one
//! way to keep state and not two. A client's memory is a memfd that it holds; when this process has ended, however it ended,
//! the client hands the memfd to a successor (`control/resume.rs`).
//!
//! # The order of stores
//! A process can be killed between any two stores, and all that it has stored until then is there. So the journal must be
//! recoverable at every store:
//!
//! - **One fact is one word**, stored at once: a register that the driver writes changes one word, before the access is
//!   answered and before it has any other effect. If the answer did not arrive, the client does the access again, which
//!   changes nothing that was recorded.
//! - **A reset** first stores that it has begun (`resetting`), and then everything else; that it is over is the last store. A
//!   successor that finds a reset begun does all of it again.
//! - **A queue** ([`queue`]) stores the bit of a chain when it takes it. When it shows the driver used chains, it stores the
//!   used elements and then the used index, in guest memory; then the journal follows: the chains' bits are cleared, and
//!   then the index is stored. The driver's view counts: a successor reads the used index from guest memory,
//!   clears the bits of the elements that the journal has not followed, and does the chains that are still in flight again.
//! - **The header** of a client's memory is stored last, when the rest is complete.
//!
//! All stores have release order, so the compiler keeps them in program order. The processor and the kernel do so for a
//! process that is killed: a process that has seen it end sees all of its stores up to one of them, and none after that.
//!
//! # Validation
//! The process that wrote the journal may have been hijacked, and the client may write it at any time. Every word is checked
//! when it is read, which is when a queue comes into service and when a successor takes over, as a guest's rings are: a
//! journal that makes no sense is refused, or ends in a device that needs a reset.

mod device;
mod fence;
mod head_set;
#[cfg(test)]
pub mod kill_points;
mod memory;
mod queue;

pub use device::{COMMON_WORDS, CONFIG_SPACE_WORDS, DEVICE_WORDS, Journal, JournalError, QUEUE_REGISTER_WORDS};
pub use fence::Fence;
pub use head_set::HeadSet;
pub use memory::Words;
pub use queue::QueueJournal;
